"""The kinds of value that facts are made of, and what is absurd for each.

A value out of bounds is loaded as "not known", so that no check meets a temperature of 10^300.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Between:
    """The least and the greatest number that can be true."""

    low: float
    high: float


@dataclass(frozen=True)
class Lengths:
    """How many characters or entries there can be at most."""

    most: int


Text = Annotated[str | None, Lengths(16384)]
Flag = bool | None
Count = Annotated[int | None, Between(0, 2**63 - 1)]
Bytes = Annotated[int | None, Between(0, 2**64 - 1)]
Signed = Annotated[int | None, Between(-(2**31), 2**31)]
Real = Annotated[float | None, Between(-1e12, 1e12)]
Words = Annotated[tuple[str, ...] | None, Lengths(4096)]
