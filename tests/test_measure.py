"""The measuring code: plan, estimates, records, and a real run of it on CPU ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, needs_torch

pytestmark = [needs_torch, pytest.mark.usefixtures("kernels_on_the_path")]
SOURCES = os.pathsep.join((str(ROOT / "kernels" / "src"), str(ROOT)))


def test_shapes_are_those_of_the_models() -> None:
    from smoke_tests.measure.models import models, shapes_of

    shapes = shapes_of(models().values(), 8)
    assert [(s.n, s.k) for s in shapes] == [
        (8192, 1024),
        (8192, 3696),
        (8192, 3584),
        (5120, 1024),
        (5120, 3200),
    ]
    assert shapes[0].models == "Qwen2.5-72B, Llama-3.1-70B"
    assert shapes[0].layer == "o_proj"
    assert {s.k for s in shapes_of([models()["Qwen2.5-72B"]], 2)} == {4096, 14784}
    with pytest.raises(ValueError, match="down_proj: 29568 cannot be split over 64 ranks"):
        shapes_of(models().values(), 64)


def test_copies_go_past_the_cache_and_calls_use_all_of_them_equally() -> None:
    from smoke_tests.measure.plan import calls_of, copies_of

    l2 = 50 * 2**20
    for weight in (2**20, 16 * 2**20, 60 * 2**20, 484 * 2**20):
        copies = copies_of(weight, l2)
        assert copies >= 4
        assert copies * weight >= 2.5 * l2 or copies == 64
        assert calls_of(copies) >= 20
        assert calls_of(copies) % copies == 0
    assert copies_of(484 * 2**20, l2) == 4


def test_rounds_and_rows_stay_within_their_limits() -> None:
    from smoke_tests.measure.plan import FULL, rounds_of, sample_rows

    assert rounds_of(1.0, FULL) == FULL.most_rounds
    assert rounds_of(1e9, FULL) == FULL.least_rounds
    assert sample_rows(1) == (0,)
    assert sample_rows(8192)[0] == 0
    assert sample_rows(8192)[-1] == 8191
    assert len(sample_rows(8192)) == len(set(sample_rows(8192))) == 8


def test_turns_are_fair_and_the_slowest_rank_counts() -> None:
    from smoke_tests.measure.timing import HostTimer, slowest_median, take_turns

    order: list[str] = []
    bodies = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = take_turns(HostTimer(), bodies, 4, lambda: order.append("-"))
    # The first one of a round runs once before it counts.
    assert "".join(order) == "".join(("-a", "-a-b", "-b", "-b-a") * 2)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    assert slowest_median([[1, 2, 90], [3, 4, 5]]) == 4


def _cases() -> list[Any]:
    from smoke_tests.measure.bench import Case

    return [
        Case(16, 8192, 1024, {"fused": 10.0, "a": 20.0, "b": 15.0}),
        Case(16, 8192, 3696, {"fused": 30.0, "a": 30.0, "b": 45.0}),
        Case(64, 8192, 1024, {"fused": 10.0, "a": 20.0}),
        Case(64, 8192, 3696, {"a": 20.0}, {}, {"fused": "fused: PeerTimeoutError"}),
    ]


def test_a_model_is_its_layers_against_the_best_baseline_of_each() -> None:
    from smoke_tests.measure.estimate import estimates, speed_ups
    from smoke_tests.measure.models import models

    assert speed_ups(_cases()[0]) == {"a": 2.0, "b": 1.5, "best": 1.5}
    assert speed_ups(_cases()[3]) == {}
    (found,) = estimates(_cases(), models().values(), 8)  # at M 64 one layer has no time
    assert (found.model, found.m) == ("Qwen2.5-72B", 16)
    assert (found.fused_us, found.serial_us) == (40.0, 45.0)
    assert found.speed_up == 1.125
    assert found.model_fused_ms == pytest.approx(3.2)
    assert found.saved_ms == pytest.approx(0.4)


def test_the_limit_is_the_slowest_of_memory_arithmetic_and_links() -> None:
    from smoke_tests.measure.limits import Limits, least_us

    rates = Limits(3000.0, 700.0, 300.0)
    small = least_us(16, 8192, 1024, 8, "virtual", rates)
    assert small == pytest.approx(8 * 2 * (8192 * 1024 + 16 * (8192 + 1024)) / 3e6)
    large = least_us(8192, 8192, 3696, 1, "virtual", rates)
    assert large == pytest.approx(2 * 8192 * 8192 * 3696 / 7e8)
    linked = least_us(8192, 8192, 1024, 8, "processes", rates)
    assert linked == pytest.approx(2 * 7 / 8 * 8192 * 8192 * 2 / 3e5)


def test_records_carry_the_labels() -> None:
    from smoke_tests.measure.limits import Limits
    from smoke_tests.measure.models import models, shapes_of
    from smoke_tests.measure.rows import Place, line_of, of_case
    from smoke_tests.records import dump, load

    shape = shapes_of([models()["Qwen2.5-72B"]], 8)[0]
    rows = list(of_case(Place("virtual", 8), shape, _cases()[0], Limits(3000.0, 700.0)))
    assert [load(dump(row)) for row in rows] == rows
    best = [r for r in rows if r.name == "fused/serial" and r.labels["baseline"] == "best"]
    assert [r.value for r in best] == [1.5]
    assert best[0].tier == "gpu"
    assert best[0].labels == {
        "ranks": "virtual",
        "w": 8,
        "m": 16,
        "n": 8192,
        "k": 1024,
        "layer": "o_proj",
        "models": "Qwen2.5-72B",
        "baseline": "best",
    }
    assert "PeerTimeoutError" in line_of(_cases()[3], 5.0)


def test_multicast_is_off_only_where_all_three_say_so() -> None:
    from smoke_tests.measure.cli import multicast

    off = {
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
    }
    assert multicast(off) == "off"
    assert "NCCL_NVLS_ENABLE=unset" in multicast({**off, "NCCL_NVLS_ENABLE": ""})


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    from smoke_tests.measure.cli import parse

    out = ["--out", str(tmp_path / "new")]
    assert parse(["--ranks", "virtual", *out]).w == [8]
    (tmp_path / "old").write_text("")
    for wrong in (
        ["--ranks", "virtual", "--w", "3", *out],
        ["--ranks", "processes", *out],  # not under torchrun
        ["--ranks", "virtual", "--out", str(tmp_path / "old")],
    ):
        with pytest.raises(SystemExit) as caught:
            parse(wrong)
        assert caught.value.code == 2


def _ranks(tmp_path: Path, w: int, *more: str) -> list[Any]:
    environment = os.environ | {
        "PYTHONPATH": SOURCES,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = str(ROOT / "tests" / "measure_rank.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path), str(rank), str(w), *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(w)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [p.returncode for p in started] == [0] * w, said[0][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_ranks_check_time_and_leave_out_what_fails_on_one_of_them(tmp_path: Path) -> None:
    found = _ranks(tmp_path, 2)
    assert found[0] == found[1]  # every rank has the slowest rank's numbers
    for case, m in zip(found[0]["cases"], (1, 5), strict=True):
        assert case["m"] == m
        ways = {"fused", "cublas+gloo", "cublas+own all-reduce"}
        assert set(case["call_us"]) == set(case["latency_us"]) == ways
        assert all(us > 0 for us in case["call_us"].values())
        assert set(case["problems"]) == {"wrong", "absent"}
        assert "rank 1: AssertionError: wrong: error is nan" in case["problems"]["wrong"]
        assert "rank 1: RuntimeError: not here" in case["problems"]["absent"]
    assert found[0]["rates"] == {"copy": 2, "store": 2, "load": 2}
    assert "rank 0 -> rank 1: " in found[0]["pairs"]
    assert "rank 1 -> rank 0" not in found[0]["pairs"]


def test_what_torchrun_starts_runs_to_its_end(tmp_path: Path) -> None:
    from smoke_tests.records import Check, Measure, load

    records = [load(line) for line in _ranks(tmp_path, 2, "run")[0]]
    checks = [record for record in records if isinstance(record, Check)]
    assert [(c.name, c.outcome) for c in checks] == [
        ("processes-w2-n64-k64-measured_calls_are_right", "passed")
    ]
    measures = [record for record in records if isinstance(record, Measure)]
    names = {measure.name for measure in measures}
    assert names == {
        "p2p bandwidth",
        "copy bandwidth",
        "matmul rate",
        "all-reduce latency",
        "call",
        "latency",
        "physical limit",
        "limit/fused",
        "fused/serial",
        "layer fused/serial",
        "layer",
        "model",
        "model saves",
    }
    links = [m.labels for m in measures if m.name == "p2p bandwidth"]
    assert len(links) == 6
    assert links[0] == {
        "ranks": "processes",
        "w": 2,
        "transport": "nvshmem",
        "how": "copy",
        "src": 0,
        "dst": 1,
    }
    assert {m.tier for m in measures} == {"multi-gpu"}


def test_one_kernel_sums_the_parts_of_all_ranks() -> None:
    code = """
import torch
from smoke_tests.measure.sum_kernel import sum_to_all
parts = torch.randint(-4, 5, (3, 5, 1000)).half()
out = torch.full_like(parts, float("nan"))
sum_to_all(parts, out)
assert bool((out == parts.sum(0)).all())
"""
    environment = os.environ | {"PYTHONPATH": SOURCES, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# ---------------------------------------------------------------------- a whole run


class _Bench:
    """Two ways to multiply on a CPU; with a way that is wrong, if asked."""

    kind, rank, world_size = "virtual", 0, 8

    def __init__(self, wrong_at: int = 0) -> None:
        self._wrong_at = wrong_at

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def load(self, n: int, k: int, copies: int, tokens: Any) -> None:
        import torch

        self._weight = torch.ones(1, n, k, dtype=torch.bfloat16)

    def ways(self, m: int) -> list[Any]:
        import torch

        from smoke_tests.measure.bench import Way

        self._x = torch.ones(1, m, self._weight.shape[2], dtype=torch.bfloat16)
        y = self._x[0] @ self._weight[0].T
        return [Way("fused", lambda _: y + (m == self._wrong_at)), Way("serial", lambda _: y)]

    def reference(self, rows: Any) -> Any:
        import torch

        from smoke_tests.reference import bound

        return bound(self._x[:, list(rows)], self._weight, torch.bfloat16)

    def align(self) -> None: ...

    def flush(self) -> None: ...


@pytest.mark.parametrize("wrong_at", [0, 5])
def test_a_run_writes_checks_measures_and_what_was_wrong(wrong_at: int) -> None:
    import torch

    from smoke_tests.measure.cli import time_shapes
    from smoke_tests.measure.limits import Limits
    from smoke_tests.measure.models import Shape
    from smoke_tests.measure.plan import Effort
    from smoke_tests.measure.rows import Place
    from smoke_tests.records import Check, Measure

    shapes = [Shape(16, 8, (("a model", "o_proj"),)), Shape(16, 24, (("a model", "down_proj"),))]
    rows: list[Any] = []
    bench: Any = _Bench(wrong_at)
    cases, failures = time_shapes(
        bench,
        Place("virtual", 8),
        shapes,
        Effort((1, 5, 10**9), 0.001, 2, 2, 2),  # the last does not fit
        Limits(3000.0, 700.0),
        torch.device("cpu"),
        rows.append,
    )
    assert [(case.k, case.m) for case in cases] == [(8, 1), (8, 5), (24, 1), (24, 5)]
    checks = [row for row in rows if isinstance(row, Check)]
    ratios = [r for r in rows if isinstance(r, Measure) and r.name == "fused/serial"]
    assert {r.labels["baseline"] for r in ratios} == {"serial", "best"}
    if wrong_at:
        assert failures == 2
        assert [check.outcome for check in checks] == ["failed", "failed"]
        assert checks[0].detail.startswith("M 5: fused: rank 0: AssertionError: fused: error is")
        assert {r.labels["m"] for r in ratios} == {1}
    else:
        assert failures == 0
        assert [check.detail for check in checks] == ["2 values of M right, and timed"] * 2
        assert {r.labels["m"] for r in ratios} == {1, 5}


# ---------------------------------------------------------------------- bands


def _result(**changes: Any) -> Any:
    from smoke_tests.records import Measure, Result, Run, Verdict

    machine = {"devices": ["NVIDIA H100 80GB HBM3"] * 2}
    run = Run("node", "host", machine, started="2026-01-02T03:04:05+00:00", **changes)
    pairs = [
        Measure("multi-gpu", "p2p bandwidth", rate, "GB/s", {"how": how, "src": a, "dst": b})
        for a, b, how, rate in ((0, 1, "copy", 300.0), (1, 0, "copy", 280.0), (0, 1, "load", 200.0))
    ]
    shape: dict[str, str | int] = {
        "ranks": "virtual",
        "w": 8,
        "m": 16,
        "n": 8192,
        "k": 1024,
        "layer": "o_proj",
    }
    ratios = [
        Measure("gpu", "fused/serial", value, "ratio", {**shape, "baseline": name})
        for name, value in (("best", 1.2), ("cublas+nccl", 1.4))
    ]
    return Result(run, measures=(*pairs, *ratios), verdict=Verdict(0, {}, {}))


def test_bands_of_a_run_hold_that_run_and_fail_a_slower_one(tmp_path: Path) -> None:
    import dataclasses

    from smoke_tests.bands import judge, read_bands
    from smoke_tests.measure.make_bands import bands_of, entry_of

    result = _result()
    file = tmp_path / "bands.toml"
    file.write_text("\n".join(entry_of(rule) for rule in bands_of(result, "h100.jsonl")))
    rules = read_bands(file)
    assert len(rules) == 3
    assert {rule.source for rule in rules} == {"h100.jsonl, 2026-01-02, 15% below"}
    device = "NVIDIA H100 80GB HBM3"
    judged = [judge(measure, device, rules).outcome for measure in result.measures]
    assert judged == ["passed"] * 4 + ["unjudged"]
    slower = [dataclasses.replace(m, value=m.value * 0.8) for m in result.measures]
    assert [judge(m, device, rules).outcome for m in slower] == [
        "passed",  # above the slowest pair's
        "failed",
        "failed",
        "failed",
        "unjudged",
    ]
    assert judge(slower[1], "NVIDIA H20", rules).outcome == "unjudged"


def test_bands_come_from_whole_real_runs_only() -> None:
    import dataclasses

    from smoke_tests.measure.make_bands import bands_of
    from smoke_tests.records import Verdict

    for bad in (
        _result(synthetic=True),
        dataclasses.replace(_result(), verdict=None),
        dataclasses.replace(_result(), verdict=Verdict(1, {}, {})),
    ):
        with pytest.raises(ValueError, match="whole run that passed"):
            bands_of(bad, "x")


def test_of_two_runs_on_one_type_of_gpu_the_slower_makes_the_bands() -> None:
    import dataclasses

    from smoke_tests.measure.make_bands import text_of

    fast = _result()
    slow = dataclasses.replace(
        fast, measures=tuple(dataclasses.replace(m, value=m.value * 0.9) for m in fast.measures)
    )
    both = text_of({"fast.jsonl": fast, "slow.jsonl": slow})
    assert both == text_of({"slow.jsonl": slow, "fast.jsonl": fast})
    assert both == text_of({"slow.jsonl": slow})


def test_the_shipped_bands_are_those_of_their_sources() -> None:
    from smoke_tests.bands import BANDS, read_bands
    from smoke_tests.measure.make_bands import text_of
    from smoke_tests.records import read

    names = dict.fromkeys(rule.source.partition(",")[0] for rule in read_bands())
    made = text_of({name: read(ROOT / "docs" / "data" / name) for name in names})
    assert made == BANDS.read_text(), "run the command in the head of the file"


def test_every_recorded_run_can_be_judged() -> None:
    from smoke_tests.bands import judge, read_bands
    from smoke_tests.records import read

    rules, judged = read_bands(), 0
    for path in (ROOT / "docs" / "data").glob("measure-*.jsonl"):
        result = read(path)
        (device,) = set(result.run.machine["devices"])
        outcomes = [judge(measure, device, rules).outcome for measure in result.measures]
        judged += len(outcomes) - outcomes.count("unjudged")
        assert "failed" not in outcomes, path
    assert judged > 100


# ---------------------------------------------------------------------- invoke bench --fused


def test_the_verb_takes_a_process_per_gpu_or_virtual_ranks(tmp_path: Path) -> None:
    from tdstack.bench import fused_command

    file = tmp_path / "x"
    one = " ".join(fused_command(1, quick=False, file=file)[1:])
    assert one == f"-m smoke_tests.measure --ranks virtual --w 1,2,4,8 --out {file}"
    six = " ".join(fused_command(6, quick=True, file=file)[1:])
    assert six == (
        "-m torch.distributed.run --standalone --nproc-per-node=4 -m smoke_tests.measure "
        f"--ranks processes --quick --out {file}"
    )


def test_the_verb_refuses_a_file_that_is_there_and_a_host_without_a_gpu(tmp_path: Path) -> None:
    from tdstack.bench import fused
    from tdstack.errors import HostError, UsageError

    (tmp_path / "old").write_text("")
    with pytest.raises(UsageError, match="new file"):
        fused(ROOT, quick=True, out=str(tmp_path / "old"))
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(HostError, match="timing kernels needs a GPU"):
            fused(ROOT, quick=True, out=str(tmp_path / "new"))
