"""What failed checks say together: made-up outcomes, layers, pairs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smoke_tests.layers import CHECKS, LAYERS, Layer, Seen, diagnose, layer_of, suspects
from tests.conftest import needs_torch

pytestmark = pytest.mark.usefixtures("kernels_on_the_path")


def _run(*failing: str, details: dict[str, str] | None = None) -> list[Seen]:
    """Every check of a node, in which some fail."""
    names = [*CHECKS, "integers_are_exact", "epoch_wraps_around"]
    unknown = set(failing) - set(names)
    assert not unknown, unknown
    return [
        Seen(f"nvshmem-w8-{name}", name not in failing, (details or {}).get(name, ""), "multi-gpu")
        for name in names
    ]


PUT, GET = "nvshmem_put_reaches_every_pair", "nvshmem_get_reaches_every_pair"
SYMMETRIC = "symmetric_memory_reaches_every_pair"
NCCL, PEERS = "nccl_all_reduce_is_right", "gpus_reach_each_other_in_one_process"
GPU, TRITON = "each_gpu_computes_and_copies_right", "triton_distributed_gemm_all_reduce_is_right"
OURS = "integers_are_exact"


@pytest.mark.parametrize(
    ("failing", "begins"),
    [
        ((OURS,), "kernels: nvshmem-w8-integers_are_exact failed; hardware, driver, PyTorch and"),
        ((TRITON,), "Triton-distributed: "),
        ((TRITON, PUT), "NVSHMEM: "),
        ((OURS, TRITON, PUT, GET), "NVSHMEM: "),
        ((NCCL,), "NCCL: nvshmem-w8-nccl_all_reduce_is_right failed; hardware and driver beneath"),
        ((OURS, SYMMETRIC), "PyTorch: "),
        ((OURS, TRITON, NCCL, SYMMETRIC, PUT), "driver or links: NCCL, NVSHMEM and PyTorch fail"),
        ((OURS, PUT, NCCL, SYMMETRIC, PEERS), "driver: "),
        ((OURS, PUT, NCCL, SYMMETRIC, PEERS, GPU), "hardware: "),
    ],
)
def test_the_lowest_layer_that_fails_is_named(failing: tuple[str, ...], begins: str) -> None:
    assert diagnose(_run(*failing)).startswith(begins)


def test_nothing_is_said_where_all_pass() -> None:
    assert diagnose(_run()) == ""
    assert diagnose([]) == ""


def test_layers_that_do_not_stand_on_each_other_are_both_named() -> None:
    said = diagnose(_run(NCCL, OURS))
    assert said.startswith("NCCL: ")
    assert "also kernels, on its own" in said


def test_a_pair_that_all_failures_share_is_named() -> None:
    details = {
        PUT: "rank 0 -> rank 3: nothing came\nrank 2 -> rank 3: nothing came",
        GET: "rank 3 <- rank 0: nothing came",
    }
    said = diagnose(_run(PUT, GET, details=details))
    assert "failed between rank 0 and rank 3; " in said
    details[GET] = "rank 1 <- rank 0: nothing came"
    assert "between" not in diagnose(_run(PUT, GET, details=details))


def test_what_was_not_checked_is_said() -> None:
    said = diagnose([Seen("virtual-w8-integers_are_exact", False, "", "gpu")])
    assert "hardware, driver, PyTorch and NVSHMEM beneath were not checked" in said


def test_a_failure_on_cpu_ranks_blames_no_hardware() -> None:
    said = diagnose([Seen("cpu-w4-integers_are_exact", False, "", "cpu"), Seen(GPU, True)])
    assert said.startswith("kernels: ")
    assert "no GPU, driver or link" in said


def test_what_fails_before_there_are_ranks_is_the_installation() -> None:
    seen = [Seen("import-nvshmem", False, "", "import"), *_run(OURS, PUT)]
    assert diagnose(seen).startswith("installation: import-nvshmem failed")


def test_the_verb_says_which_layer_is_to_blame() -> None:
    from smoke_tests.records import Check, RankState, Result, Run, Verdict
    from tdstack.smoke.run import error_of

    detail = "rank 0 -> rank 3: nothing came"
    checks = (
        Check("multi-gpu", f"multi-gpu-nvshmem-w4-{NCCL}", "passed", 1.0),
        Check(
            "multi-gpu",
            f"multi-gpu-nvshmem-w4-{PUT}",
            "failed",
            1.0,
            "",
            (RankState(0, "failed", "", detail),),
        ),
    )
    result = Result(Run("node", "host", {}), checks=checks, verdict=Verdict(1, {}, {}))
    error = error_of(result, {"failed": [PUT], "report": "x.html", "skips": {}}, 1)
    assert error is not None
    assert error.remedy is not None
    assert error.remedy.startswith("NVSHMEM: multi-gpu-nvshmem-w4-nvshmem_put_reaches_every_pair")
    assert "between rank 0 and rank 3" in error.remedy
    assert error.remedy.endswith("see x.html")


def test_a_measure_of_a_check_is_held_to_its_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smoke_tests import recording
    from smoke_tests.bands import BandRule
    from smoke_tests.outcome import Outcome
    from smoke_tests.records import Measure, Run, read

    rule = BandRule("NVIDIA H100*", "p2p bandwidth", "GB/s", "made up", {}, 100.0)
    monkeypatch.setattr(recording, "read_bands", lambda: (rule,))
    run = Run("node", "host", {"devices": ["NVIDIA H100 80GB HBM3"]})
    made = recording.Recording(tmp_path / "run.jsonl", run, ["multi-gpu"])
    slow = Measure("multi-gpu", "p2p bandwidth", 40.0, "GB/s", {"src": 0, "dst": 1})
    found = recording.Found(outcomes=[Outcome(0, "passed", measures=(slow,))])
    made.add("multi-gpu", "a check", True, 1.0, "", found)
    assert made.end(hung=False, impossible=False) == 1
    made.close()
    (measure,) = read(tmp_path / "run.jsonl").measures
    assert (measure.outcome, measure.band) == ("failed", (100.0, None))


def test_every_set_of_failed_layers_has_a_suspect() -> None:
    for bits in range(1, 2 ** len(LAYERS)):
        failed: list[Layer] = [layer for i, layer in enumerate(LAYERS) if bits >> i & 1]
        assert suspects(failed)
        assert suspects(failed)[0] == min(failed, key=LAYERS.index) or "NCCL" in failed


@needs_torch
def test_every_layered_check_is_registered_and_they_run_from_the_bottom_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from smoke_tests.checks import registry
    from smoke_tests.checks.registry import load

    monkeypatch.setattr(registry, "CHECKS", dict(reversed(load().items())))
    checks = load()
    assert set(CHECKS) <= set(checks)
    order = [LAYERS.index(c.layer) for c in checks.values() if not c.ends_ranks]
    assert order == sorted(order)
    assert layer_of("nvshmem-w2-nvshmem_get_reaches_every_pair") == "NVSHMEM"
    for name in CHECKS:
        between = name != GPU
        assert checks[name].own_gpu == between
        assert "cpu" not in checks[name].kinds


# ---------------------------------------------------------------------- pairs


class _Gather:
    """A barrier that hands out everybody's value, for ranks that are threads."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size)
        self._values: list[Any] = [None] * world_size

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait(20)
        values = list(self._values)
        self._barrier.wait(20)
        return values


def _walk(direction: Any, w: int, fault: Callable[[int, int], int | None]) -> list[list[str]]:
    """Walk the pairs with W threads; a move of (mover, peer) reaches the rank that fault says."""
    import torch

    from smoke_tests.payload import WORDS, bad_pairs

    inboxes = [torch.zeros(WORDS, dtype=torch.int32) for _ in range(w)]
    outboxes = [torch.zeros(WORDS, dtype=torch.int32) for _ in range(w)]
    gather = _Gather(w)
    steps: list[str] = []
    results: list[list[str]] = [[] for _ in range(w)]

    def step(name: str) -> contextlib.AbstractContextManager[None]:
        steps.append(name)
        return contextlib.nullcontext()

    def rank(r: int) -> None:
        def move(peer: int) -> None:
            reached = fault(r, peer)
            if reached is None:
                return
            if direction == "put":
                inboxes[reached].copy_(outboxes[r])
            else:
                inboxes[r].copy_(outboxes[reached])

        results[r] = bad_pairs(
            direction,
            r,
            w,
            lambda value: gather(r, value),
            inboxes[r],
            outboxes[r],
            move,
            lambda: None,
            step,
        )

    threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(w)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(steps) == len(set(steps)) == w * (w - 1)
    return results


@needs_torch
@pytest.mark.parametrize("direction", ["put", "get"])
def test_pairs_that_work_are_not_named(direction: str) -> None:
    assert _walk(direction, 3, lambda _, peer: peer) == [[], [], []]


@needs_torch
def test_a_put_that_is_lost_names_its_pair_on_every_rank() -> None:
    found = _walk("put", 3, lambda mover, peer: None if (mover, peer) == (0, 2) else peer)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1
    assert found[0][0].startswith("rank 0 -> rank 2: 65536 of 65536 words are wrong")
    assert found[0][0].endswith("nothing came")


@needs_torch
def test_a_put_that_reaches_another_rank_is_seen_there_too() -> None:
    found = _walk("put", 3, lambda mover, peer: 1 if (mover, peer) == (0, 2) else peer)
    assert len(found[0]) == 1
    assert "rank 1 got something" in found[0][0]


@needs_torch
def test_a_get_from_another_rank_says_whose_payload_it_is() -> None:
    found = _walk("get", 3, lambda mover, peer: 1 if (mover, peer) == (2, 0) else peer)
    assert len(found[0]) == 1
    # Rank 1's outbox holds nothing yet, or an earlier pair's payload: never what was asked for.
    assert found[0][0].startswith("rank 2 <- rank 0: 65536 of 65536 words are wrong")


@needs_torch
def test_a_move_that_raises_leaves_nobody_waiting() -> None:
    def fault(mover: int, peer: int) -> int:
        if (mover, peer) == (1, 0):
            raise RuntimeError("no route")
        return peer

    found = _walk("put", 2, fault)
    assert found[0] == found[1]
    assert len(found[0]) == 1
    assert found[0][0].startswith("rank 1 -> rank 0: ")
    assert found[0][0].endswith("RuntimeError: no route")


@needs_torch
def test_a_payload_names_its_pair() -> None:
    from smoke_tests.payload import payload, verdict

    assert verdict(payload(3, 126), 3, 126) == ""
    assert "it is what rank 1 sends to rank 2" in verdict(payload(1, 2), 2, 1)
    one_word = payload(0, 1)
    one_word[77] ^= 1 << 3
    assert verdict(one_word, 0, 1).startswith("1 of 65536 words are wrong, the first is word 77")


# ---------------------------------------------------------------------- bounds, Triton-distributed


@needs_torch
def test_the_bound_of_a_sum_holds_and_is_not_idle() -> None:
    import torch

    from smoke_tests.checks.collectives import sum_bound
    from smoke_tests.reference import require_bound

    parts = torch.randn(8, 4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = parts[0]
    for part in parts[1:]:
        y = (y.float() + part.float()).bfloat16()
    assert 0.1 < require_bound(y, *sum_bound(parts), "in order") <= 1
    with pytest.raises(AssertionError, match="one left out"):
        require_bound(y - parts[3], *sum_bound(parts), "one left out")


class _Method(Enum):
    Consumer_Load = 1
    Consumer_Multimem = 2


class _OnlyMulticast(Enum):
    Ring_Multimem = 1


@needs_torch
def test_triton_distributed_is_told_to_load_and_store() -> None:
    from smoke_tests.checks.triton_distributed import without_multimem

    old = SimpleNamespace(USE_MULTIMEM_ST=True, ctx=SimpleNamespace())
    assert without_multimem(old).USE_MULTIMEM_ST is False
    contexts = [SimpleNamespace(all_reduce_method=_Method.Consumer_Multimem) for _ in range(2)]
    new = SimpleNamespace(USE_MULTIMEM_ST=True, ctx=SimpleNamespace(ctxs=contexts))
    without_multimem(new)
    assert [c.all_reduce_method for c in contexts] == [_Method.Consumer_Load] * 2
    contexts[0].all_reduce_method = _OnlyMulticast.Ring_Multimem
    with pytest.raises(AssertionError, match="nothing but multicast"):
        without_multimem(new)
