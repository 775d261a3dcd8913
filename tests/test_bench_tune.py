"""`invoke bench --tune`: candidates, what is picked, the table, and the flow without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, needs_torch

pytestmark = [needs_torch, pytest.mark.usefixtures("kernels_on_the_path")]
M = (16, 64, 256, 1024, 8192)
LAYERS = [(64, 16), (128, 16)]


def shape(m: int, w: int = 8, arch: str = "sm_90", n: int = 8192, k: int = 1024) -> Any:
    from gemm_allreduce.dispatch import Shape

    return Shape(m, n, k, w, arch, processors=132)


# ---------------------------------------------------------------------- candidates


@pytest.mark.parametrize("w", [1, 2, 4, 8])
@pytest.mark.parametrize("m", M)
def test_candidates_hold_what_was_tuned_by_hand(m: int, w: int) -> None:
    from gemm_allreduce.dispatch import choose
    from gemm_allreduce.layout import HeapLayout
    from smoke_tests.measure.candidates import candidates, label

    found = candidates(shape(m, w))
    chosen = choose(shape(m, w))
    late = replace(chosen, variant=replace(chosen.variant, early=0))
    assert late in found
    unfused = {(c.variant.algorithm, c.variant.split) for c in found if not c.variant.product}
    split = {("two_shot", w), ("two_shot", 1)}
    few = m <= HeapLayout(w, 1, 1).small_tokens
    wanted = split | {("one_shot", 1)} if few else split
    if m <= HeapLayout(w, 1, 1).cell_tokens:
        wanted = wanted | {("lamport", 1)}
    assert unfused == (wanted if w > 1 and m in (64, 256) else set())
    assert 5 <= len(found) <= 300
    assert len({label(choice) for choice in found}) == len(found)
    assert found == candidates(shape(m, w))  # ranks make them each for itself


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_candidates_fit_by_estimate_and_can_be_rules(arch: str) -> None:
    from gemm_allreduce.layout import HeapLayout
    from gemm_allreduce.limits import limits
    from smoke_tests.measure.candidates import candidates

    for w in (1, 2, 8):
        for m in (1, 16, 33, 300, 8192):
            for choice in candidates(shape(m, w, arch)):
                variant, tile = choice.variant, choice.variant.tile
                assert (variant.algorithm == "direct") == (w == 1)
                if most := HeapLayout(w, 1, 1).most_tokens(variant.algorithm):
                    assert max(m, tile.block_m) <= most
                assert not tile.bulk or arch in ("sm_90", "sm_100")
                stages = tile.num_stages if arch in ("sm_90", "sm_100") else tile.num_stages - 1
                stages -= tile.block_m < 64 and arch in ("sm_90", "sm_100")
                shared = stages * 2 * tile.block_k * (tile.block_m + tile.block_n)
                assert shared <= limits().shared_of_cta(arch, choice.ctas_per_sm)


def test_what_was_compiled_must_fit_as_often_as_the_choice_says() -> None:
    from dataclasses import replace

    from gemm_allreduce.dispatch import Choice
    from gemm_allreduce.variants import Tile, Variant
    from smoke_tests.measure.candidates import misfit

    tile = Tile(64, 128, 64, 4, 4)
    choice = Choice(Variant("direct", "bf16", "bf16", 1, tile), ctas_per_sm=2)
    assert misfit(choice, "sm_90", 255, 115712) is None
    assert "115713 bytes of shared memory, at most 115712" in str(
        misfit(choice, "sm_90", 9, 115713)
    )
    four = replace(choice, ctas_per_sm=4)
    assert "129 registers a thread, at most 128" in str(misfit(four, "sm_90", 129, 0))
    assert misfit(four, "sm_90", 128, 0) is None


# ---------------------------------------------------------------------- picking, without a device


class Ranks:
    """Multiplies on the CPU; notes which kernel would have served."""

    kind, rank, world_size = "virtual", 0, 8

    def __init__(self, chooser: Any, wrong: Callable[[Any], bool]) -> None:
        self.chooser, self.wrong, self.served = chooser, wrong, ""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def load(self, n: int, k: int, copies: int, tokens: Any) -> None:
        import torch

        self.weight = torch.ones(1, n, k, dtype=torch.bfloat16)

    def ways(self, m: int) -> list[Any]:
        import torch

        from smoke_tests.measure.bench import FUSED, Way
        from smoke_tests.measure.candidates import label

        n, k = self.weight.shape[1:]
        self.x = torch.ones(1, m, k, dtype=torch.bfloat16)
        y = self.x[0] @ self.weight[0].T

        def fused(_: int) -> Any:
            choice = self.chooser(shape(m, n=n, k=k))
            self.served = label(choice)
            return y + 1 if self.wrong(choice) else y

        return [Way(FUSED, fused), Way("serial", lambda _: y)]

    def reference(self, rows: Any) -> Any:
        import torch

        from smoke_tests.reference import bound

        return bound(self.x[:, list(rows)], self.weight, torch.bfloat16)

    def align(self) -> None: ...

    def flush(self) -> None: ...


class Clock:
    """A timer for which a kernel takes what a function of its name says, microseconds; another
    function where K is over 16."""

    def __init__(self, ranks: Ranks, *time_of: Callable[[str], float]) -> None:
        self._ranks, self._time_of = ranks, time_of

    def record(self, body: Any) -> Any:
        body()
        return self._ranks.served, self._ranks.weight.shape[2] > 16

    def time(self, replay: Any, before: Any) -> Any:
        served, deep = replay
        return lambda: self._time_of[deep](served)

    def synchronize(self) -> None: ...

    def forget(self) -> None: ...


def run(
    time_of: Callable[[str], float],
    *,
    deep: Callable[[str], float] | None = None,
    tokens: tuple[int, ...] = (16, 64),
    wrong: Callable[[Any], bool] = lambda _: False,
    resources: Callable[[Any, int, int, int], Any] = lambda *_: (100, 1000),
    ahead: list[Any] | None = None,
    kept: list[list[Any]] | None = None,
) -> list[Any]:
    from smoke_tests.measure.plan import Effort
    from smoke_tests.measure.tuning import Chooser, TunedBench, tune

    ahead = [] if ahead is None else ahead
    chooser = Chooser()
    ranks: Any = Ranks(chooser, wrong)
    return tune(
        TunedBench(ranks, chooser),
        Clock(ranks, time_of, deep or time_of),
        lambda m, n, k: shape(m, n=n, k=k),
        [*LAYERS, (64, 64)] if deep else LAYERS,
        Effort(tokens, 0.001, 2, 2, 2),
        0,
        resources,
        lambda variants, arch: ahead.append((arch, [variant.name for variant in variants])),
        lambda _: None,
        lambda found: kept.append(list(found)) if kept is not None else None,
    )


FAST = "two_shot_bf16_w8_split_16x256x64_stages6_warps4, comm_ctas 0, per SM 1"


def test_what_is_far_from_the_fastest_is_timed_in_two_rounds_only() -> None:
    from smoke_tests.measure.bench import measure
    from smoke_tests.measure.plan import Effort

    times = {"fused": 300.0, "a": 100.0, "b": 119.0, "c": 121.0}
    timed: Counter[str] = Counter()

    class Ways(Ranks):
        def ways(self, m: int) -> list[Any]:
            fused, _ = super().ways(m)
            return [replace(fused, name=name, call=partial(self.call, name)) for name in times]

        def call(self, name: str, _: int) -> Any:
            self.served = name
            return self.x[0] @ self.weight[0].T

    def time_of(name: str) -> float:
        timed[name] += 1
        return times[name] - 10 * (timed[name] > 2)  # a clock that goes up

    ranks: Any = Ways(None, lambda _: False)
    ranks.load(64, 16, 4, [16])
    effort = Effort((16,), 1.0, 5, 5, 0)
    case = measure(ranks, Clock(ranks, time_of), 16, 64, 16, 4, effort, within=1.2)
    assert case.call_us == {
        name: us / 20 for name, us in {"fused": 290.0, "a": 90.0, "b": 109.0, "c": 121.0}.items()
    }
    assert timed == {"fused": 7, "a": 7, "b": 7, "c": 2}
    assert case.latency_us == {}
    timed.clear()
    measure(ranks, Clock(ranks, time_of), 16, 64, 16, 4, effort)
    assert timed == dict.fromkeys(times, 7)


def test_the_fastest_candidate_is_picked_and_others_are_told_why_not() -> None:
    from gemm_allreduce.dispatch import choose
    from smoke_tests.measure.candidates import candidates, label

    assert FAST in {label(c) for c in candidates(shape(16))}
    (picked,) = run(lambda name: 50.0 if name == FAST else 100.0, tokens=(16,))
    assert label(picked.choice) == FAST
    assert picked.ratio == 2.0
    # With what the table chooses, an early one, and the two early forms of the fastest four.
    assert picked.timed == len(candidates(shape(16))) + 1 + 2 * 4
    assert not picked.refused
    # A little faster is no reason to change.
    (kept,) = run(lambda name: 98.5 if name == FAST else 100.0, tokens=(16,))
    assert kept.choice == choose(shape(16))
    assert kept.ratio == 1.0


def test_the_fastest_few_are_timed_in_their_early_forms_too() -> None:
    from gemm_allreduce.dispatch import early_form
    from smoke_tests.measure.candidates import candidates, label
    from smoke_tests.measure.table import Tuned, rules_of, text_of

    early = FAST.replace("warps4", "warps4_early512")
    others = [label(c) for c in candidates(shape(16)) if label(c) != FAST]
    second, third, fourth, fifth = others[:4]

    def time_of(name: str) -> float:
        best = {FAST: 60.0, second: 61.0, third: 62.0, fourth: 63.0, fifth: 64.0, early: 50.0}
        return best.get(name, 100.0)

    (picked,) = run(time_of, tokens=(16,))
    assert label(picked.choice) == early
    assert picked.ratio == 2.0

    def starting_early(name: str) -> str:
        kernel, rest = name.split(", ", 1)
        return f"{kernel}_early16, {rest}"

    # An early form of the fourth may be the fastest; that of the fifth is not tried.
    (from_fourth,) = run(
        lambda name: 40.0 if name == starting_early(fourth) else time_of(name), tokens=(16,)
    )
    assert label(from_fourth.choice) == starting_early(fourth)
    (not_fifth,) = run(
        lambda name: 40.0 if name == starting_early(fifth) else time_of(name), tokens=(16,)
    )
    assert label(not_fifth.choice) == early
    assert early_form(picked.choice, "sm_90", 16) is None
    (rule,) = rules_of(text_of(_origin(), [Tuned(8, 78, [picked])]))
    assert rule.choice("bf16", None, 8) == picked.choice
    (kept,) = run(lambda name: {FAST: 60.0, early: 59.5}.get(name, 100.0), tokens=(16,))
    assert label(kept.choice) == FAST
    assert early_form(kept.choice, "sm_89", 16) is None
    (left,) = run(
        lambda name: {FAST: 60.0, early: 50.0}.get(name, 100.0),
        tokens=(16,),
        wrong=lambda choice: label(choice) == early,
    )
    assert label(left.choice) == FAST
    assert "error is" in left.refused[early]


def test_a_depth_that_wants_another_kernel_gets_a_rule_of_its_own() -> None:
    from smoke_tests.measure.candidates import candidates, label
    from smoke_tests.measure.table import Tuned, rules_of, text_of

    other = next(label(c) for c in candidates(shape(16)) if label(c) != FAST)

    shallow, deep = run(
        lambda name: 50.0 if name == FAST else 100.0,
        deep=lambda name: 50.0 if name == other else 100.0,
        tokens=(16,),
    )
    assert (shallow.depths, label(shallow.choice), shallow.ratio) == ((16,), FAST, 2.0)
    assert (deep.depths, label(deep.choice), deep.ratio) == ((64,), other, 2.0)
    first, second = rules_of(text_of(_origin(), [Tuned(8, 78, [deep, shallow])]))
    assert (first.max_depth, second.max_depth) == (32, None)  # the geometric mean
    assert first.choice("bf16", None, 8) == shallow.choice
    assert second.choice("bf16", None, 8) == deep.choice
    # Where they agree to within the margin there is one rule.
    both = {FAST: 50.0, other: 50.5}
    (one,) = run(
        lambda name: both.get(name, 100.0),
        deep=lambda name: {FAST: 50.5, other: 50.0}.get(name, 100.0),
        tokens=(16,),
    )
    assert (one.depths, label(one.choice)) == ((16, 64), FAST)
    assert one.ratio == pytest.approx((2.0 * 2.0 * 100 / 50.5) ** (1 / 3), abs=1e-4)


def test_rows_that_agree_at_every_depth_share_their_rules() -> None:
    from smoke_tests.measure.candidates import candidates, label
    from smoke_tests.measure.table import Tuned, rules_of, text_of

    common = {label(c) for c in candidates(shape(1024))} & {
        label(c) for c in candidates(shape(512))
    }
    first, second = sorted(name for name in common if name.startswith("two_shot"))[:2]
    picked = run(
        lambda name: 50.0 if name == first else 100.0,
        deep=lambda name: 50.0 if name == second else 100.0,
        tokens=(512, 1024),
    )
    assert [(p.tokens, p.depths) for p in picked] == [
        (512, (16,)),
        (512, (64,)),
        (1024, (16,)),
        (1024, (64,)),
    ]
    text = text_of(_origin(), [Tuned(8, 78, picked)])
    shallow, deep = rules_of(text)
    assert (shallow.max_tokens, shallow.max_depth) == (None, 32)
    assert (deep.max_tokens, deep.max_depth) == (None, None)
    assert text.count("# against the table before: M 512: x2.00, M 1024: x2.00") == 2


def test_what_is_wrong_cannot_be_made_or_does_not_fit_is_never_picked() -> None:
    from smoke_tests.measure.candidates import label

    def time_of(name: str) -> float:
        return 50.0 if name == FAST else 100.0

    (picked,) = run(time_of, tokens=(16,), wrong=lambda c: label(c) == FAST)
    assert label(picked.choice) != FAST
    assert "error is" in picked.refused[FAST]

    def broken(choice: Any, *_: int) -> tuple[int, int]:
        if label(choice) == FAST:
            raise RuntimeError("ptxas failed")
        return 100, 1000

    (picked,) = run(time_of, tokens=(16,), resources=broken)
    assert "rank 0: RuntimeError: ptxas failed" in picked.refused[FAST]
    (picked,) = run(
        time_of, tokens=(16,), resources=lambda c, *_: (256 if label(c) == FAST else 100, 1000)
    )
    assert picked.refused == {FAST: "256 registers a thread, at most 255 for 1 a multiprocessor"}
    assert label(picked.choice) != FAST


def test_a_run_whose_incumbent_is_wrong_ends() -> None:
    from smoke_tests.measure.bench import StepError

    with pytest.raises(StepError, match="M 16 N 64 K 16, the table in force: fused: rank 0: Asser"):
        run(lambda _: 1.0, tokens=(16,), wrong=lambda _: True)


def test_all_candidates_of_an_m_are_compiled_before_the_first_is_timed() -> None:
    from smoke_tests.measure.candidates import candidates

    ahead: list[Any] = []
    asked: list[str] = []

    def resources(choice: Any, *_: int) -> tuple[int, int]:
        # The second list of an M are early forms, beside what was picked from the first one.
        assert any(choice.variant.name in names for _, names in ahead[-2:])
        asked.append(choice.variant.name)
        return 100, 1000

    run(lambda _: 1.0, tokens=(16, 64), resources=resources, ahead=ahead)
    assert [arch for arch, _ in ahead] == ["sm_90"] * 4
    for (_, names), m in zip(ahead[::2], (16, 64), strict=True):
        assert {c.variant.name for c in candidates(shape(m))} <= set(names)
    assert all("_early" in name for _, names in ahead[1::2] for name in names)
    assert asked


# ---------------------------------------------------------------------- the table


def _origin() -> Any:
    from smoke_tests.measure.table import Origin

    return Origin(
        "NVIDIA H20", "sm_90", 78, "3.6.0", "2026-01-02", "processes over nvshmem", LAYERS
    )


def test_the_table_is_read_back_and_serves_what_was_picked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemm_allreduce import dispatch
    from smoke_tests.measure.table import Tuned, text_of

    def time_of(name: str) -> float:
        fast = ("_split_", "128x128x64", "per SM 2")
        plain = "_bulk" not in name and all(part in name for part in fast)
        return 50.0 if plain else 100.0

    picked = run(time_of, tokens=(16, 256, 1024))
    text = text_of(_origin(), [Tuned(8, 78, picked)])
    assert "# GPU         NVIDIA H20, sm_90, 78 multiprocessors\n# Triton      3.6.0\n" in text
    assert "# date        2026-01-02" in text
    assert "# against the table before: M 256: x" in text
    assert text.count("[[rule]]") == 2  # M 256 and 1024 have one choice
    file = tmp_path / "table.toml"
    file.write_text(text)
    monkeypatch.setenv(dispatch.TABLE_VARIABLE, str(file))
    dispatch.rules.cache_clear()
    try:
        for one, ms in ((picked[0], (1, 16)), (picked[1], (17, 256, 1024, 8192))):
            for m in ms:
                own = dispatch.Shape(m, 8192, 1024, 8, "sm_90", processors=78)
                assert dispatch.choose_from(dispatch.rules(), own) == one.choice
                other = dispatch.Shape(m, 8192, 1024, 8, "sm_90", processors=132)
                own_table = dispatch.choose_from(dispatch.package_rules(), other)
                assert dispatch.choose_from(dispatch.rules(), other) == own_table
    finally:
        monkeypatch.undo()
        dispatch.rules.cache_clear()


def test_after_every_m_there_is_a_table_of_what_was_found_so_far() -> None:
    from smoke_tests.measure.table import Tuned, rules_of, text_of

    kept: list[list[Any]] = []
    picked = run(lambda _: 1.0, tokens=(16, 64, 256), kept=kept)
    assert kept == [picked[:1], picked[:2], picked]
    text = text_of(_origin(), [Tuned(8, 78, kept[1])], whole=False)
    assert "\n# unfinished  no rule serves more rows than were timed\n" in text
    assert [rule.max_tokens for rule in rules_of(text)][-1] == 64
    assert "unfinished" not in text_of(_origin(), [Tuned(8, 78, kept[1])])


@pytest.mark.parametrize("ends", ["whole", "early", "at once", "disk"])
def test_a_run_that_ends_early_leaves_what_it_found(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from smoke_tests.measure import tune
    from smoke_tests.measure.table import Tuned, rules_of

    picked = run(lambda _: 1.0, tokens=(16, 64))

    def tuned(given: Any, draft: Any) -> Any:
        if ends == "at once":
            raise RuntimeError("no room for weights")
        draft([Tuned(8, 78, picked[:1])], LAYERS)
        if ends == "early":
            raise RuntimeError("M 64: the table in force: it hung")
        if ends == "disk":
            (tmp_path / ".new.toml.part").mkdir()
        return [Tuned(8, 78, picked)], LAYERS

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "run_virtual", tuned)
    monkeypatch.setattr(tune, "origin_of", lambda *_: _origin())
    out, part = tmp_path / "new.toml", tmp_path / "new.toml.part"
    status = tune.main(["--ranks", "virtual", "--out", str(out)])
    said = capsys.readouterr().err
    assert status == (0 if ends == "whole" else 1)
    if ends == "whole":
        assert len(rules_of(out.read_text())) == len({p.choice for p in picked})
        assert os.listdir(tmp_path) == ["new.toml"]
        assert f"GEMM_AR_DISPATCH={out}" in said
        return
    assert not out.exists()
    assert "no table was written: " in said
    assert part.exists() == (ends != "at once") == (f"; {part} has what was found before" in said)
    if part.exists():
        assert rules_of(part.read_text())[-1].max_tokens == 16


def test_a_last_rule_for_few_rows_ends_there() -> None:
    from smoke_tests.measure.table import Tuned, rules_of, text_of

    picked = run(lambda name: 50.0 if name.startswith("one_shot") else 100.0, tokens=(16,))
    (rule,) = rules_of(text_of(_origin(), [Tuned(8, 78, picked)]))
    assert (rule.algorithm, rule.max_tokens) == ("one_shot", 16)


# ---------------------------------------------------------------------- ranks, and the verb


def test_ranks_tune_together_and_write_one_table(tmp_path: Path) -> None:
    """Two processes, real kernels in Triton's interpreter, a host's clock."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "kernels" / "src"), str(ROOT))),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = str(ROOT / "tests" / "measure_rank.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path), str(rank), "2", "tune"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240) for process in started]
    assert [p.returncode for p in started] == [0, 0], said[0][1][-2000:]
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert found[0] == found[1]
    from smoke_tests.measure.table import rules_of

    (rule,) = rules_of(found[0]["text"])
    assert (rule.min_processors, rule.max_processors, rule.world_sizes) == (132, 132, (2,))
    assert found[0]["timed"] == 7  # the incumbent, two candidates, two early forms of each
    assert "rank 1: AssertionError" in "".join(found[0]["refused"])


def test_without_a_gpu_the_verb_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from tdstack.bench_tune import tune
    from tdstack.errors import HostError, UsageError

    with pytest.raises(HostError, match="tuning needs a GPU") as caught:
        tune(ROOT, out=str(tmp_path / "new"))
    assert int(caught.value.code) == 3
    (tmp_path / "old").write_text("")
    with pytest.raises(UsageError, match="new file"):
        tune(ROOT, out=str(tmp_path / "old"))
    with pytest.raises(UsageError, match="lost is no folder"):
        tune(ROOT, out=str(tmp_path / "lost" / "new"))
    command = [sys.executable, "-m", "smoke_tests.measure", "tune", "--ranks", "virtual"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "new")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "a GPU is needed" in done.stderr
    assert not (tmp_path / "new").exists()
    lost = subprocess.run(
        [*command, "--out", str(tmp_path / "lost" / "new")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert lost.returncode == 2, "said before the work that would be lost"
    assert "lost is no folder that can be written" in lost.stderr


def test_the_verb_tunes_a_process_per_gpu_or_virtual_ranks(tmp_path: Path) -> None:
    from tdstack.bench_tune import tune_command

    file = tmp_path / "x"
    one = " ".join(tune_command(1, file)[1:])
    assert one == f"-m smoke_tests.measure tune --ranks virtual --w 1,2,4,8 --out {file}"
    six = " ".join(tune_command(6, file)[1:])
    assert six == (
        "-m torch.distributed.run --standalone --nproc-per-node=4 -m smoke_tests.measure tune "
        f"--ranks processes --out {file}"
    )
