"""Made-up runs for the tests of the reports, marked as such: one full node, and a small cluster.

No number here was measured. `python -m tests.synthetic_runs` writes tests/data/smoke/ anew; a test
sees to it that the files are what this makes.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from smoke_tests.bands import judge, read_bands
from smoke_tests.records import (
    Check,
    Evidence,
    Label,
    Measure,
    RankState,
    Record,
    Run,
    Skip,
    TierOutcome,
    Verdict,
    dump,
)

DATA: Final = Path(__file__).with_name("data") / "smoke"
H100: Final = "NVIDIA H100 80GB HBM3"
SHAPES: Final = {"o_proj": (8192, 8192), "down_proj": (8192, 29568)}
SLOW_LINK: Final = (3, 5)
HUNG_CHECK: Final = "nvshmem-w8-each_rank_late_in_turn"
NAMES: Final = (
    "integers_are_exact",
    "random_values_are_within_the_bound",
    "every_rank_counts_once",
    "each_rank_late_in_turn",
)
Fault: TypeAlias = Literal[
    "", "slow link", "below band", "cut off", "hung", "old driver", "no GPUs"
]


@dataclass(frozen=True)
class Node:
    """A made-up node; ``full`` measures more shapes than a cluster's nodes do."""

    host: str
    fault: Fault = ""
    full: bool = False

    def records(self) -> Iterator[Record]:
        """Yield all that its run would have written."""
        chance = random.Random(self.host)
        yield self._run()
        yield Skip("multi-node", "one node: no rendezvous was given")
        if self.fault == "no GPUs":
            yield Skip("gpu", "torch 2.11.0+cu130 sees no GPU")
            yield Skip("multi-gpu", "torch 2.11.0+cu130 sees no GPU")
        yield from self._checks(chance)
        if self.fault == "cut off":
            return
        measures = list(self._measures(chance)) if self.fault != "no GPUs" else []
        yield from measures
        bad = any(measure.outcome == "failed" for measure in measures)
        hung = self.fault == "hung"
        top: TierOutcome = "failed" if bad or hung else "passed"
        tiers: dict[str, TierOutcome] = {"import": "passed", "compile": "passed", "cpu": "passed"}
        tiers["gpu"] = "skipped" if self.fault == "no GPUs" else "passed"
        tiers["multi-gpu"] = "skipped" if self.fault == "no GPUs" else top
        tiers["multi-node"] = "skipped"
        total = sum(1 for _ in self._checks(random.Random(0))) - 2 * hung
        yield Verdict(
            6 if hung else int(bad),
            tiers,
            {"passed": total - hung, "hung": int(hung)},
        )

    def _run(self) -> Run:
        driver = "570.86.15" if self.fault == "old driver" else "580.95.05"
        machine = {
            "devices": [] if self.fault == "no GPUs" else [H100] * 8,
            "driver": driver,
            "cores": 192,
            "python": "3.12.3",
            "torch": "2.11.0+cu130",
            "cuda": "13.0",
            "triton": "3.6.0",
            "kernels": "cubins",
            "nvshmem": "3.4.5, nvshmem4py 0.3.1",
            "gemm_allreduce": "0.3.0",
        }
        name = str(uuid.uuid5(uuid.NAMESPACE_DNS, self.host))
        return Run(self.host, "host", machine, name, "2026-01-01T00:00:00+00:00", synthetic=True)

    def _checks(self, chance: random.Random) -> Iterator[Check | Evidence]:
        yield Check("import", "one_nvshmem", "passed", 0.4, "host, wheel and bitcode are 3.4.5")
        yield Check("compile", "every_cubin_keeps_its_limits", "passed", 0.9, "96 cubins")
        for name in NAMES:
            yield Check("cpu", f"cpu-w4-{name}", "passed", round(chance.uniform(1, 9), 2))
        if self.fault == "no GPUs":
            return
        for name in NAMES:
            yield Check("gpu", f"virtual-w8-{name}", "passed", round(chance.uniform(0, 5), 2))
        for name in NAMES[: 2 if self.fault == "cut off" else None]:
            full = f"nvshmem-w8-{name}"
            if self.fault == "hung" and full == HUNG_CHECK:
                yield from _hang(full)
            else:
                yield Check("multi-gpu", full, "passed", round(chance.uniform(0, 5), 2))

    def _measures(self, chance: random.Random) -> Iterator[Measure]:
        rules = read_bands(DATA / "bands.toml")
        for measure in self._unjudged(chance):
            yield judge(measure, H100, rules)

    def _unjudged(self, chance: random.Random) -> Iterator[Measure]:
        sizes = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
        worlds, tokens = ([2, 4, 8], sizes) if self.full else ([8], [1, 16, 64, 1024])
        for layer, (n, depth) in SHAPES.items():
            for w in worlds:
                for m in tokens:
                    labels: dict[str, Label] = {"w": w, "m": m, "n": n, "k": depth // w}
                    yield from self._shape(chance, labels | {"layer": layer}, w, m, depth / w)
        for source in range(8):
            for target in range(8):
                if source != target:
                    slow = self.fault == "slow link" and (source, target) == SLOW_LINK
                    value = 38.0 if slow else 370 * chance.uniform(0.99, 1.01)
                    ends = {"src": source, "dst": target}
                    yield Measure("multi-gpu", "p2p bandwidth", round(value, 1), "GB/s", ends)
        copy = 2900 * chance.uniform(0.99, 1.01)
        yield Measure("gpu", "copy bandwidth", round(copy, 1), "GB/s")

    def _shape(
        self, chance: random.Random, labels: dict[str, Label], w: int, m: int, depth: float
    ) -> Iterator[Measure]:
        labels = {"ranks": "processes", **labels}
        serial = 14 + 3 * w + 0.0016 * depth + m * (0.09 + 2.4e-5 * depth)
        gain = 1 + 0.11 * w / (1 + m / 900)
        if self.fault == "below band":
            gain *= 0.6
        fused = serial / gain * chance.uniform(0.99, 1.01)
        for way, us in (("fused", fused), ("cublas+nccl", serial)):
            yield Measure("multi-gpu", "call", round(us, 2), "us", {**labels, "way": way})
        ratio = round(serial / fused, 3)
        serially = {**labels, "baseline": "cublas+nccl"}
        yield Measure("multi-gpu", "fused/serial", ratio, "ratio", serially)


def _hang(name: str) -> Iterator[Check | Evidence]:
    ranks = [RankState(2, "hung", "wait for the peers' flags", "no answer within 120 s")]
    ranks += [RankState(rank, "left", "barrier after the call") for rank in (0, 1)]
    yield Check("multi-gpu", name, "hung", 120.0, "rank 2 did not answer in time", tuple(ranks))
    for rank in (0, 2):
        stacks = f'File "checks/sequences.py", line 88 in each_rank_late_in_turn  # rank {rank}'
        status = {"epoch": 17, "arrived": 6 + rank}
        yield Evidence(name, rank, stacks, status, {"NCCL_NVLS_ENABLE": "0"}, "GPU0 NV18 GPU1")


FULL: Final = Node("synthetic-node", full=True)
CLUSTER: Final = (
    Node("synthetic-00"),
    Node("synthetic-01"),
    Node("synthetic-02", "slow link"),
    Node("synthetic-03", "below band"),
    Node("synthetic-04", "cut off"),
    Node("synthetic-05", "hung"),
    Node("synthetic-06", "old driver"),
    Node("synthetic-07", "no GPUs"),
    Node("synthetic-08"),
)


def text_of(node: Node) -> str:
    """Return the file of a node's run; that of one that was cut off ends within a line."""
    text = "".join(dump(record) + "\n" for record in node.records())
    return text[:-20] if node.fault == "cut off" else text


def files() -> dict[Path, str]:
    """Return every file and its text."""
    cluster = {DATA / "cluster" / f"{node.host}.jsonl": text_of(node) for node in CLUSTER}
    return {DATA / "eight-gpus.jsonl": text_of(FULL), **cluster}


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
