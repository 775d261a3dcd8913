"""What the hardware gives: copies, products, links; and what no call can go below."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from smoke_tests.measure.bench import RanksKind
from smoke_tests.measure.inputs import DTYPE, normal
from smoke_tests.measure.timing import Timer, take_turns

COPY_BYTES = 2**30
SQUARE = 8192
ROUNDS = 10


@dataclass(frozen=True)
class Limits:
    """Rates of one GPU, the slowest of the ranks'; measured in the same run.

    Attributes:
        copy_gbs: a copy on the device, read plus written, 10^9 bytes a second.
        matmul_tflops: cuBLAS on square matrices of SQUARE, 10^12 operations a second.
        link_gbs: from one GPU to another, the slowest pair; None on one GPU.
    """

    copy_gbs: float
    matmul_tflops: float
    link_gbs: float | None = None


def measure_device(device: torch.device, timer: Timer) -> Limits:
    """Time copies and products on this process's GPU."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (normal(device, seed, SQUARE, SQUARE) for seed in (1, 2))
    c = torch.empty(SQUARE, SQUARE, dtype=DTYPE, device=device)

    def copy() -> None:
        target.copy_(source)

    def matmul() -> None:
        torch.mm(a, b, out=c)

    bodies = {"copy": copy, "matmul": matmul}
    take_turns(timer, bodies, 3, _nothing)
    times = take_turns(timer, bodies, ROUNDS, _nothing)
    us = {name: statistics.median(values) for name, values in times.items()}
    return Limits(2 * COPY_BYTES / us["copy"] / 1e3, 2 * SQUARE**3 / us["matmul"] / 1e6)


def _nothing() -> None:
    pass


def least_us(m: int, n: int, k: int, world_size: int, kind: RanksKind, limits: Limits) -> float:
    """Return the time below which no call can be, in microseconds. Pure.

    The largest of: every byte of x, weight and y through memory once; every operation; and, with
    a GPU per rank, the least that a rank must send in an all-reduce, 2 (W - 1) / W of y.
    """
    share = world_size if kind == "virtual" else 1
    memory = share * (n * k + m * k + m * n) * DTYPE.itemsize / (limits.copy_gbs * 1e3)
    compute = share * 2 * m * n * k / (limits.matmul_tflops * 1e6)
    link = 0.0
    if kind == "processes" and limits.link_gbs:
        sent = 2 * (world_size - 1) / world_size * m * n * DTYPE.itemsize
        link = sent / (limits.link_gbs * 1e3)
    return max(memory, compute, link)
