"""Which kernel serves a call: a pure function of its shape, over the table in dispatch.toml.

GEMM_AR_DISPATCH=FILE puts the rules of a file before those of the package: a table tuned on the
GPU at hand (docs/bench.md). Read once per process.

``python -m gemm_allreduce.dispatch M N K W ARCH [--dtype bf16] [--operand fp8e4m3]
[--processors 132]`` prints the choice and the rules that were passed over.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from .layout import ELEMENT_BYTES, HeapLayout
from .variants import DTYPES, OPERANDS, WORLD_SIZES, Dtype, Operand, Tile, Variant

ARCHS: Final = (
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90",
    "sm_100",
    "sm_103",
    "sm_120",
    "sm_121",
)
_NO_FP8: Final = ("sm_80", "sm_86")
BEFORE_SM_90: Final = ("sm_80", "sm_86", "sm_89")
"""Without bulk copies (TMA) and programmatic dependent launches."""
_PLAIN, _SCALED = "plain", "scaled"
TABLE_VARIABLE: Final = "GEMM_AR_DISPATCH"


@dataclass(frozen=True)
class Shape:
    """What a choice depends on.

    ``tokens`` (M), ``features`` (N) and ``depth`` (K of this rank) are in elements; ``arch`` is
    like ``sm_90``; ``processors`` are the multiprocessors that one rank has.
    Raises: ValueError for sizes, types or an architecture that are not served.
    """

    tokens: int
    features: int
    depth: int
    world_size: int
    arch: str
    dtype: Dtype = "bf16"
    operand: Operand | None = None
    processors: int = 132

    def __post_init__(self) -> None:
        for name in ("tokens", "features", "depth", "processors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.world_size not in WORLD_SIZES:
            raise ValueError(
                f"world_size must be one of {', '.join(map(str, WORLD_SIZES))}, "
                f"got {self.world_size}"
            )
        if self.arch not in ARCHS:
            raise ValueError(f"unknown architecture {self.arch!r}; valid: {', '.join(ARCHS)}")
        if self.operand in DTYPES and self.operand != self.dtype:
            raise ValueError(f"operand {self.operand} needs dtype {self.operand}")
        if self.operand == "fp8e4m3" and self.arch in _NO_FP8:
            raise ValueError(f"{self.arch} has no FP8 matrix units; sm_89 and later have")

    @property
    def plain(self) -> bool:
        """Whether x and weight are of y's type, not 8-bit with scales."""
        return self.operand in (None, self.dtype)


@dataclass(frozen=True)
class Choice:
    """A kernel and how it is launched. ``comm_ctas`` CTAs only communicate; with 0 all do both."""

    variant: Variant
    comm_ctas: int = 0
    ctas_per_sm: int = 1


@dataclass(frozen=True)
class Rule:
    """One entry of the table; see dispatch.toml for what the fields mean."""

    algorithm: str
    world_sizes: tuple[int, ...]
    tile: Tile
    archs: tuple[str, ...] = ARCHS
    max_tokens: int | None = None
    max_depth: int | None = None
    max_bytes: int | None = None
    split: bool = False
    early: int = 0
    fused: bool = True
    operands: str | None = None
    comm_ctas: int = 0
    ctas_per_sm: int = 1
    min_processors: int | None = None
    max_processors: int | None = None

    def __post_init__(self) -> None:
        for name, given, valid in (
            ("world_sizes", self.world_sizes, WORLD_SIZES),
            ("archs", self.archs, ARCHS),
        ):
            if not given or not set(given) <= set(valid):
                raise ValueError(f"{name} must be some of {valid}, got {given}")
        for name, least in (
            ("max_tokens", 1),
            ("max_depth", 1),
            ("max_bytes", 1),
            ("early", 0),
            ("comm_ctas", 0),
            ("ctas_per_sm", 1),
            ("min_processors", 1),
            ("max_processors", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )

        if self.split and self.comm_ctas:
            raise ValueError("with split every CTA communicates: comm_ctas must be 0")
        if not self.fused and (self.tile.bulk or self.tile.num_stages != 1):
            raise ValueError("what is not fused only sums: no bulk, and num_stages 1")
        if self.operands not in (None, _PLAIN, _SCALED):
            raise ValueError(f"operands must be {_PLAIN} or {_SCALED}, got {self.operands!r}")
        if not self.fused and self.operands != _PLAIN:
            raise ValueError(f"8-bit operands are always fused: others need operands {_PLAIN}")
        lacking = [arch for arch in self.archs if arch in BEFORE_SM_90]
        for name, wanted in (("bulk", self.tile.bulk), ("early", self.early > 0)):
            if wanted and lacking:
                raise ValueError(f"{name} needs sm_90 or later, archs has {', '.join(lacking)}")

    def refusal(self, shape: Shape) -> str | None:
        """Return why the rule does not fit, or None if it does."""
        size = shape.tokens * shape.features * ELEMENT_BYTES
        if shape.world_size not in self.world_sizes:
            return f"for {', '.join(map(str, self.world_sizes))} ranks"
        if shape.arch not in self.archs:
            return f"for {', '.join(self.archs)}"
        if not self.serves(shape.plain):
            return f"for {self.operands} operands"
        if self.max_tokens is not None and shape.tokens > self.max_tokens:
            return f"M over {self.max_tokens}"
        if self.max_depth is not None and shape.depth > self.max_depth:
            return f"K over {self.max_depth}"
        if self.max_bytes is not None and size > self.max_bytes:
            return f"y of {size} bytes, over {self.max_bytes}"
        if self.min_processors is not None and shape.processors < self.min_processors:
            return f"for ranks of at least {self.min_processors} multiprocessors"
        if self.max_processors is not None and shape.processors > self.max_processors:
            return f"for ranks of at most {self.max_processors} multiprocessors"
        return None

    def require_rows(self) -> None:
        """Raise ValueError if the rule, or its tile, is for more rows than its algorithm serves."""
        served = [HeapLayout(w, 1, 1).most_tokens(self.algorithm) for w in self.world_sizes]
        most = min((rows for rows in served if rows is not None), default=None)
        if most is None:
            return
        if self.max_tokens is None or max(self.max_tokens, self.tile.block_m) > most:
            raise ValueError(f"{self.algorithm} serves at most {most} rows there, in such tiles")

    def serves(self, plain: bool) -> bool:
        """Return whether the rule is for operands of y's type, or for 8-bit ones."""
        return self.operands in (None, _PLAIN if plain else _SCALED)

    def choice(self, dtype: Dtype, operand: Operand | None, world_size: int) -> Choice:
        """Return what the rule chooses."""
        variant = Variant(
            self.algorithm,  # type: ignore[arg-type] # Variant checks it
            dtype,
            operand or dtype,
            world_size,
            self.tile,
            world_size if self.split else 1,
            product=self.fused,
            early=self.early,
        )
        return Choice(variant, self.comm_ctas, self.ctas_per_sm)


def parse_rules(tables: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Return the rules of a parsed table.

    Raises: ValueError naming the number of the bad rule.
    """
    rules = []
    for number, table in enumerate(tables, 1):
        fields = dict(table)
        try:
            tile = Tile(*fields.pop("tile"), bulk=fields.pop("bulk", False))  # type: ignore[misc]
            for name in ("world_sizes", "archs"):
                if name in fields:
                    fields[name] = tuple(fields[name])
            rule = Rule(tile=tile, **fields)
            for world_size in rule.world_sizes:
                rule.choice("bf16", None, world_size)
            rule.require_rows()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"rule {number} of the dispatch table: {error}") from error
        rules.append(rule)
    return tuple(rules)


@lru_cache(maxsize=1)
def package_rules() -> tuple[Rule, ...]:
    """Return the package's own table."""
    return parse_rules(tomllib.loads(_package_text())["rule"])


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """Return the rules in force: those of the file that GEMM_AR_DISPATCH names, then the package's.

    Raises: ValueError when the file cannot be read, or is no table of rules.
    """
    return _file_rules() + package_rules()


def table_digest() -> str:
    """Return what is the same where the rules in force are. Raises: as `rules`."""
    return hashlib.sha256(repr(rules()).encode()).hexdigest()[:12]


def _package_text() -> str:
    return resources.files(__package__).joinpath("dispatch.toml").read_text("utf-8")


def _named() -> str:
    return os.environ.get(TABLE_VARIABLE, "")


def _file_rules() -> tuple[Rule, ...]:
    named = _named()
    if not named:
        return ()
    try:
        table = tomllib.loads(Path(named).read_text("utf-8"))
        if set(table) != {"rule"} or not isinstance(table["rule"], list):
            raise ValueError(
                f"it must hold [[rule]] entries only, got {', '.join(table) or 'none'}"
            )
        return parse_rules(table["rule"])
    except (OSError, ValueError) as error:
        raise ValueError(f"{TABLE_VARIABLE} names {named}: {error}") from error


@lru_cache(maxsize=4096)
def choose(shape: Shape) -> Choice:
    """Return the choice of the first rule that fits.

    Depends on nothing but `shape`, so that all ranks of a group choose alike.
    Raises: LookupError when no rule fits.
    """
    return choose_from(rules(), shape)


def choose_from(table: Iterable[Rule], shape: Shape) -> Choice:
    """Return the choice of the first rule of a table that fits. Pure. Raises: as `choose`."""
    for rule in table:
        if rule.refusal(shape) is None:
            return rule.choice(shape.dtype, shape.operand, shape.world_size)
    raise LookupError(f"no rule of the dispatch table fits {shape}")


def sum_only(choice: Choice) -> Choice:
    """Return the kernel that only sums, as the choice would: no bulk copies, no K loop. Pure.

    Raises: ValueError for one rank, which has nothing to sum.
    """
    tile = replace(choice.variant.tile, bulk=False, num_stages=1)
    return replace(choice, variant=replace(choice.variant, tile=tile, product=False))


def early_form(choice: Choice, arch: str, size: int) -> Choice | None:
    """Return the choice as one that starts early and asks for `size` bytes of a row; None where
    it does already, or none can. Pure.
    """
    if choice.variant.early or arch in BEFORE_SM_90:
        return None
    return replace(choice, variant=replace(choice.variant, early=size))


def token_steps(features: int, max_tokens: int) -> tuple[int, ...]:
    """Return values of M, from 1 to max_tokens, between which `choose` does not change.

    For each M there is one of them, not below it, with the same choice for any shape that has
    this number of features N.
    """
    limits = {max_tokens}
    for rule in rules():
        limits |= {rule.max_tokens or 0, (rule.max_bytes or 0) // (features * ELEMENT_BYTES)}
    return tuple(sorted(limit for limit in limits if 1 <= limit <= max_tokens))


def reachable_variants(arch: str) -> tuple[Variant, ...]:
    """Return every variant that `choose` can return on an architecture, in the table's order.

    Raises: ValueError for an unknown architecture.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown architecture {arch!r}; valid: {', '.join(ARCHS)}")
    operands: list[tuple[Dtype, Operand]] = [("bf16", "bf16"), ("fp16", "fp16")]
    operands += [("bf16", "int8"), ("fp16", "int8")]
    if arch not in _NO_FP8:
        operands += [("bf16", "fp8e4m3"), ("fp16", "fp8e4m3")]
    found = {
        rule.choice(dtype, operand, world_size).variant: None
        for dtype, operand in operands
        for rule in rules()
        if arch in rule.archs and rule.serves(operand == dtype)
        for world_size in rule.world_sizes
    }
    return tuple(found)


def explain(shape: Shape) -> str:
    """Return the choice for a shape, and why earlier rules did not fit, as text."""
    lines = []
    for number, rule in enumerate(rules(), 1):
        refusal = rule.refusal(shape)
        if refusal is None:
            choice = rule.choice(shape.dtype, shape.operand, shape.world_size)
            lines.append(f"rule {number:2}  chosen: {choice.variant.name}")
            lines.append(f"         comm_ctas {choice.comm_ctas}, per SM {choice.ctas_per_sm}")
            if not rule.fused:
                lines.append("         not fused: torch multiplies, then this kernel sums")
            return "\n".join(lines)
        lines.append(f"rule {number:2}  {rule.algorithm}: {refusal}")
    return "\n".join([*lines, "no rule fits"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the choice for a shape; exit code 2 for a shape that is not served."""
    parser = argparse.ArgumentParser(prog="python -m gemm_allreduce.dispatch")
    for name, what in (("M", "rows"), ("N", "features"), ("K", "depth of a rank"), ("W", "ranks")):
        parser.add_argument(name, type=int, help=what)
    parser.add_argument("arch", help=", ".join(ARCHS))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--operand", choices=OPERANDS)
    parser.add_argument(
        "--processors", type=int, default=132, help="multiprocessors of a rank; default: 132"
    )
    given = parser.parse_args(arguments)
    try:
        shape = Shape(
            *(given.M, given.N, given.K, given.W, given.arch),
            *(given.dtype, given.operand, given.processors),
        )
        rules()
    except ValueError as error:
        parser.error(str(error))
    print(explain(shape))
    return 0


if __name__ == "__main__":
    sys.exit(main())
