"""How much is timed: values of M, copies of a weight, calls of a graph, rounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
QUICK_TOKENS: Final = (1, 16, 64, 512, 2048)
CALLS: Final = 20
"""At least so many calls back to back in a graph: the gap before the first one is small then."""
COPIES: Final = 4
MOST_COPIES: Final = 64
L2_FILLS: Final = 2.5
"""All copies together fill the L2 cache so often, so that no call finds its weight there."""
ELEMENT_BYTES: Final = 2


@dataclass(frozen=True)
class Effort:
    """Values of M, and seconds that each way to compute one of them is repeated for."""

    tokens: tuple[int, ...]
    seconds: float
    least_rounds: int
    most_rounds: int
    latency_rounds: int


FULL: Final = Effort(TOKENS, 0.3, 7, 30, 30)
QUICK: Final = Effort(QUICK_TOKENS, 0.08, 5, 15, 15)


def copies_of(weight_bytes: int, l2_bytes: int) -> int:
    """Return how many copies of a weight the calls go through in turn."""
    fill = -(-int(L2_FILLS * l2_bytes) // max(1, weight_bytes))
    return min(MOST_COPIES, max(COPIES, fill))


def calls_of(copies: int) -> int:
    """Return the calls of a graph: at least CALLS, and every copy equally often."""
    return copies * -(-CALLS // copies)


def rounds_of(round_us: float, effort: Effort) -> int:
    """Return how often a replay that takes ``round_us`` is repeated."""
    wished = int(effort.seconds * 1e6 / max(round_us, 1.0))
    return max(effort.least_rounds, min(effort.most_rounds, wished))


def memory_bytes(m: int, n: int, k: int, local_ranks: int, copies: int) -> int:
    """Return the device memory of a case: weights, x, products and y of the ways."""
    elements = copies * n * k + m * k + 4 * m * n
    return local_ranks * elements * ELEMENT_BYTES


def sample_rows(m: int, most: int = 8) -> tuple[int, ...]:
    """Return rows that are compared with a reference: the first, the last, some between."""
    if m <= most:
        return tuple(range(m))
    return tuple(sorted({i * (m - 1) // (most - 1) for i in range(most)}))
