"""Recorded limits of cubins, over the table in limits.toml. Imports no Triton."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from .dispatch import ARCHS, rules
from .variants import WARP, Variant

_MOST_REGISTERS: Final = 255
"""Of a thread: the encoding has no more."""
_GRANULE: Final = 8
"""Registers of a thread come in multiples of this."""


@dataclass(frozen=True)
class Arch:
    """Limits of an architecture; see limits.toml for what the fields mean."""

    shared: int
    threads: int
    multimem: bool
    bundle_bytes: int


@dataclass(frozen=True)
class Spill:
    """Variants that may use local memory: a pattern of their names, bytes per thread, and why."""

    names: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """The whole table."""

    registers: int
    reserved: int
    archs: Mapping[str, Arch]
    spills: tuple[Spill, ...]

    def shared_of_cta(self, arch: str, ctas_per_sm: int = 1) -> int:
        """Shared memory that each of so many CTAs of a multiprocessor can have, bytes."""
        return self.archs[arch].shared // ctas_per_sm - self.reserved

    def registers_of_thread(self, num_warps: int, ctas_per_sm: int) -> int:
        """Registers that a thread may have for so many CTAs to be resident."""
        share = self.registers // (WARP * num_warps * ctas_per_sm)
        return min(_MOST_REGISTERS, share // _GRANULE * _GRANULE)

    def local_bytes(self, name: str) -> int:
        """Local memory per thread that a variant may use, bytes."""
        found = (spill.bytes for spill in self.spills if fnmatchcase(name, spill.names))
        return max(found, default=0)


def parse_limits(table: Mapping[str, Any]) -> Limits:
    """Return the limits of a parsed table.

    Raises: ValueError, TypeError or KeyError for a table that is not one of limits.
    """
    archs = {name: Arch(**fields) for name, fields in table["arch"].items()}
    if tuple(archs) != ARCHS:
        raise ValueError(f"limits are for {', '.join(archs)}, expected {', '.join(ARCHS)}")
    spills = tuple(Spill(**fields) for fields in table.get("spill", ()))
    return Limits(table["registers"], table["reserved"], archs, spills)


@lru_cache(maxsize=1)
def limits() -> Limits:
    """Return the package's own table."""
    text = resources.files(__package__).joinpath("limits.toml").read_text("utf-8")
    return parse_limits(tomllib.loads(text))


def ctas_per_sm(variant: Variant) -> int:
    """Return how many CTAs of a variant dispatch wants on a multiprocessor, at most; else 1."""
    plain = dataclasses.replace(variant, multimem=False)
    choices = (
        rule.choice(plain.dtype, plain.operand, world_size)
        for rule in rules()
        for world_size in rule.world_sizes
    )
    return max((c.ctas_per_sm for c in choices if c.variant == plain), default=1)


SHARED_LIMITS: Final = {arch: limits().shared_of_cta(arch) for arch in ARCHS}
"""Valid architectures, and the shared memory in bytes that one CTA can have on each."""

NO_MULTIMEM: Final = tuple(arch for arch in ARCHS if not limits().archs[arch].multimem)
"""Architectures without multimem instructions."""
