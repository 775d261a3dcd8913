"""What is odd among numbers that should be alike. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final, Generic, TypeVar

Z_LIMIT: Final = 3.5
"""Of a robust z-score, as Iglewicz and Hoaglin recommend."""
NORMAL: Final = 1.4826
"""What makes a median absolute deviation comparable to a standard deviation."""
FLOOR: Final = 0.01
"""Least spread, as a share of the median: alike to the last digit is no reason for suspicion."""
LEAST_DEVIATION: Final = 0.05
"""A share of the median; nothing closer to it is odd, however alike the others are."""
FAR_Z: Final = 8.0
FAR_DEVIATION: Final = 0.10
"""Beyond both, a number is a fault and no accident: of hundreds of measures on dozens of nodes that
waver by 3 %, some are past the first limits in every merge."""
LEAST_COUNT: Final = 4
"""With fewer numbers none can be told to be the odd one."""
LOWER_IS_BETTER: Final = frozenset({"ns", "us", "ms", "s", "bytes", "MiB", "GiB"})
GAINS: Final = frozenset({"model saves"})
"""Measures in such a unit of which more is better all the same."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Odd(Generic[K]):
    """A number far from the others: ``z`` robust standard deviations from their median."""

    key: K
    value: float
    median: float
    mad: float
    z: float

    @property
    def far(self) -> bool:
        """Whether it is too far from the others for an accident."""
        deviation = abs(self.value - self.median)
        return abs(self.z) > FAR_Z and deviation > FAR_DEVIATION * abs(self.median)


def spread(values: list[float]) -> tuple[float, float]:
    """Return the median and the median absolute deviation from it."""
    middle = median(values)
    return middle, median(abs(value - middle) for value in values)


def find_odd(values: Mapping[K, float]) -> list[Odd[K]]:
    """Return the values that are far from the median of all, the farthest first."""
    if len(values) < LEAST_COUNT:
        return []
    middle, mad = spread(list(values.values()))
    scale = max(NORMAL * mad, FLOOR * abs(middle))
    if not scale:
        return []
    rows = [Odd(k, v, middle, mad, (v - middle) / scale) for k, v in values.items()]
    far = LEAST_DEVIATION * abs(middle)
    odd = [row for row in rows if abs(row.z) > Z_LIMIT and abs(row.value - middle) > far]
    return sorted(odd, key=lambda row: -abs(row.z))


def is_worse(change: float, unit: str, name: str) -> bool:
    """Whether a change of so much is for the worse, in this unit; ratios are speed-ups."""
    lower_is_better = unit in LOWER_IS_BETTER and name not in GAINS
    return change > 0 if lower_is_better else change < 0
