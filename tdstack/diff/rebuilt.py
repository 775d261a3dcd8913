"""A rebuilt image against the original: which layers differ, and which of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from tdstack.diff.compare import changes
from tdstack.diff.original import Configuration
from tdstack.diff.tars import OURS, THEIRS, FileDifference, compare_tars, names_of


@dataclass(frozen=True)
class LayerPair:
    """A layer of the image and the rebuilt one in its place; an empty diff id: there is none."""

    title: str
    theirs: str
    ours: str

    @property
    def equal(self) -> bool:
        """Return whether both are the same bytes."""
        return self.theirs == self.ours


@dataclass(frozen=True)
class LayerVerdict:
    """A layer that differs, and the files that do."""

    title: str
    theirs: str
    ours: str
    files: tuple[FileDifference, ...]


@dataclass(frozen=True)
class RebuildReport:
    """What a rebuild gave. `id` and `rebuilt` are image ids in hex, `seconds` of each step.

    `configuration` says what differs in labels and environment.
    """

    ref: str
    id: str
    rebuilt: str
    engine: str
    layers: int
    differing: tuple[LayerVerdict, ...] = ()
    configuration: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None

    @property
    def equal(self) -> bool:
        """Return whether the rebuild is the image: the id stands for every byte."""
        return self.id == self.rebuilt

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data (docs/verify.md describes it)."""
        seconds = {name: round(s, 2) for name, s in (self.seconds or {}).items()}
        return {"schema": 1, **asdict(self), "equal": self.equal, "seconds": seconds}


def pair_layers(
    theirs: Sequence[str], ours: Sequence[str], titles: Sequence[str]
) -> list[LayerPair]:
    """Put the layers of two images side by side, from the bottom up. Pure.

    `titles` are those of `ours`; what an image has on top of them is named by its number.
    """
    rows = zip_longest(theirs, ours, titles, fillvalue="")
    return [
        LayerPair(title or f"layer {number}", one, other)
        for number, (one, other, title) in enumerate(rows, 1)
    ]


def judge(pair: LayerPair, theirs: Path, ours: Path) -> LayerVerdict:
    """Compare two layers whose tars lie in the folders given, under the hex digits of their ids."""
    one, other = (
        folder / digest.removeprefix("sha256:") if digest else None
        for folder, digest in ((theirs, pair.theirs), (ours, pair.ours))
    )
    if one and other:
        files = compare_tars(one, other)
    else:
        path, words = (one, THEIRS) if one else (other, OURS)
        assert path is not None
        files = [FileDifference(name, (words,)) for name in names_of(path)]
    return LayerVerdict(pair.title, pair.theirs, pair.ours, tuple(files))


def configuration_differences(theirs: Configuration, ours: Configuration) -> tuple[str, ...]:
    """Return what differs in labels and environment, as words. Pure."""
    found = []
    for kind, one, other in (
        ("environment", theirs.env, ours.env),
        ("label", theirs.labels, ours.labels),
    ):
        found += [f"{kind} {c.name}: {c.before} -> {c.after}" for c in changes(one, other)]
    return tuple(found)
