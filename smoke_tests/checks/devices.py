"""The GPUs themselves, and what the driver lets them do with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from smoke_tests.checks.registry import check
from smoke_tests.payload import EMPTY, WORDS, ordered_pairs, payload, verdict
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, require_equal

COPY_BYTES = 256 * 2**20
SQUARE = 2048
ROUNDS = 5


@check("virtual", "symmetric")
def each_gpu_computes_and_copies_right(ranks: Ranks) -> str:
    """cuBLAS is exact on small integers, and 256 MiB come back from the device as they went."""
    source = Source(ranks.device, 200 + ranks.rank)
    a, b = (source.integers(torch.bfloat16, SQUARE, SQUARE) for _ in range(2))
    with _exact_partial_sums():
        require_equal(a @ b, (a.double() @ b.double()).bfloat16(), "product")
    sent = torch.randint(
        -(2**31), 2**31 - 1, (COPY_BYTES // 4,), dtype=torch.int32, generator=_seeded(ranks.rank)
    )
    there = sent.to(ranks.device)
    again = torch.empty_like(there)
    again.copy_(there)
    require_equal(again.cpu(), sent, "copy")
    return str(torch.cuda.get_device_name(ranks.device))


@contextmanager
def _exact_partial_sums() -> Iterator[None]:
    """Where cuBLAS splits K, it may round partial sums to bf16 unless told not to."""
    flags: Any = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_bf16_reduced_precision_reduction = before


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@check("symmetric", least_ranks=2, own_gpu=True)
def gpus_reach_each_other_in_one_process(ranks: Ranks) -> str:
    """The driver allows peer access for every ordered pair, and copies arrive; and how fast."""
    problems: list[str] = []
    said = ""
    if ranks.rank == 0:  # it sees all GPUs; in the order of the ranks
        try:
            with ranks.step("copies between GPUs"):
                problems, rates = _copies(min(torch.cuda.device_count(), ranks.world_size))
            for (source, target), rate in rates.items():
                ranks.measure(
                    "p2p bandwidth", rate, "GB/s", how="one process", src=source, dst=target
                )
            said = _slowest(rates)
        except RuntimeError as error:
            problems = [str(error)]
        finally:
            torch.cuda.set_device(ranks.device)
    found, text = ranks.gather((problems, said))[0]
    assert not found, "\n".join(found)
    return str(text)


def _slowest(rates: Mapping[tuple[int, int], float]) -> str:
    if not rates:
        return "each process sees one GPU only"
    source, target = min(rates, key=lambda pair: rates[pair])
    return f"slowest rank {source} -> rank {target}, {rates[source, target]:.1f} GB/s"


def _copies(count: int) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Return what is wrong, and every pair's bandwidth, 10^9 bytes a second."""
    problems, rates = [], {}
    for source, target in ordered_pairs(count):
        pair = f"rank {source} -> rank {target}"
        if not torch.cuda.can_device_access_peer(source, target):
            problems.append(f"{pair}: the driver allows no peer access")
        there = torch.full((WORDS,), EMPTY, dtype=torch.int32, device=f"cuda:{target}")
        there.copy_(payload(source, target, f"cuda:{source}"))
        torch.cuda.synchronize(source)
        torch.cuda.synchronize(target)
        if wrong := verdict(there, source, target):
            problems.append(f"{pair}: {wrong}")
        rates[source, target] = _rate(source, target)
    return problems, rates


def _rate(source: int, target: int) -> float:
    """Return 10^9 bytes a second of a copy from one GPU to another."""
    a = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
    b = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
    torch.cuda.set_device(source)
    b.copy_(a)  # maps the peer
    torch.cuda.synchronize(target)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(ROUNDS):
        b.copy_(a)
    end.record()
    end.synchronize()
    torch.cuda.synchronize(target)
    return float(ROUNDS * COPY_BYTES / begin.elapsed_time(end) / 1e6)
