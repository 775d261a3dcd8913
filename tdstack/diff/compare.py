"""Two snapshots -> their difference. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Generic, Literal, TypeVar

from tdstack.diff.model import FileFact, LayerFact, Release, Snapshot

T = TypeVar("T")
What = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Change(Generic[T]):
    """One name that is not the same on both sides; None: not there on that side."""

    name: str
    before: T | None
    after: T | None

    @property
    def what(self) -> What:
        """Return what happened on the way from the first side to the second."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


@dataclass(frozen=True)
class Difference:
    """What differs from `a` to `b`. `not_compared` maps a subject to who could not tell it."""

    a: str
    b: str
    packages: tuple[Change[Release], ...] = ()
    settings: tuple[Change[str], ...] = ()
    layers: tuple[Change[LayerFact], ...] = ()
    files: tuple[Change[FileFact], ...] = ()
    cubins: tuple[Change[str], ...] = ()
    altered: tuple[Change[str], ...] = ()
    env: tuple[Change[str], ...] = ()
    labels: tuple[Change[str], ...] = ()
    not_compared: Mapping[str, str] | None = None

    @property
    def equal(self) -> bool:
        """Return whether nothing that could be compared differs."""
        found = (self.packages, self.settings, self.layers, self.files, self.cubins)
        return not any((*found, self.altered, self.env, self.labels))

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready data (docs/diff.md describes it)."""
        return {
            "schema": 1,
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "not_compared": dict(self.not_compared or {}),
            "packages": _rows(self.packages),
            "settings": _rows(self.settings),
            "layers": _rows(self.layers),
            "files": _rows(self.files),
            "cubins": _rows(self.cubins),
            "altered": _rows(self.altered),
            "env": _rows(self.env),
            "labels": _rows(self.labels),
        }


def compare(a: Snapshot, b: Snapshot) -> Difference:
    """Compare everything that both sides can tell."""
    silent: dict[str, str] = {}

    def both(
        subject: str, one: Mapping[str, T] | None, other: Mapping[str, T] | None
    ) -> tuple[Mapping[str, T], Mapping[str, T]]:
        if one is None or other is None:
            silent[subject] = " and ".join(
                side.name for side, known in ((a, one), (b, other)) if known is None
            )
            return {}, {}
        return one, other

    transient = (*a.transient, *b.transient)
    files = changes(*both("files", a.files, b.files), lambda x, y: _content(x) == _content(y))
    return Difference(
        a.name,
        b.name,
        packages=changes(a.packages, b.packages, Release.same),
        settings=changes(*both("settings", a.settings, b.settings)),
        layers=changes(*both("layers", _by_title(a.layers), _by_title(b.layers))),
        files=tuple(f for f in files if not _below(f.name, transient)),
        cubins=changes(*both("cubins", a.cubins, b.cubins)),
        altered=changes(*both("altered", a.altered, b.altered)),
        env=changes(*both("env", a.env, b.env)),
        labels=changes(*both("labels", a.labels, b.labels)),
        not_compared=silent,
    )


def changes(
    before: Mapping[str, T],
    after: Mapping[str, T],
    same: Callable[[T, T], bool] = lambda x, y: x == y,
) -> tuple[Change[T], ...]:
    """Return what differs between two mappings, by name."""
    return tuple(
        Change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or not same(before[name], after[name])
    )


def file_changes(before: FileFact, after: FileFact) -> tuple[str, ...]:
    """Return in which respects a file differs, for people."""
    pairs = [
        ("kind", before.kind, after.kind),
        ("mode", f"{before.mode:04o}", f"{after.mode:04o}"),
        ("owner", before.owner, after.owner),
        ("size", str(before.size), str(after.size)),
        ("sha256", before.sha256[:12], after.sha256[:12]),
        ("target", before.target, after.target),
    ]
    return tuple(f"{name} {x or '-'} -> {y or '-'}" for name, x, y in pairs if x != y)


@dataclass(frozen=True)
class FolderSummary:
    """How many files of one folder of one layer differ, and the bytes that came and went."""

    layer: str
    folder: str
    added: int
    removed: int
    changed: int
    bytes: int


def by_folder(files: Sequence[Change[FileFact]]) -> list[FolderSummary]:
    """Summarize changes of files by layer and folder, the largest numbers first."""
    groups: dict[tuple[str, str], list[Change[FileFact]]] = {}
    for change in files:
        fact = change.after or change.before
        assert fact is not None
        groups.setdefault((fact.layer, folder_of(change.name)), []).append(change)
    rows = [
        FolderSummary(
            layer,
            folder,
            sum(c.what == "added" for c in group),
            sum(c.what == "removed" for c in group),
            sum(c.what == "changed" for c in group),
            sum(_size(c.after) - _size(c.before) for c in group),
        )
        for (layer, folder), group in groups.items()
    ]
    return sorted(rows, key=lambda r: (-(r.added + r.removed + r.changed), r.layer, r.folder))


def folder_of(path: str) -> str:
    """Return the folder under which people look for a file: a package's, or two levels deep."""
    parts = path.split("/")
    if "site-packages" in parts[:-1]:
        depth = parts.index("site-packages") + 2
        return "/".join(parts[: min(depth, len(parts) - 1)])
    return "/".join(parts[: min(2, len(parts) - 1)]) or "/"


def _by_title(layers: Sequence[LayerFact] | None) -> Mapping[str, LayerFact] | None:
    if layers is None:
        return None
    named: dict[str, LayerFact] = {}
    for layer in layers:
        # Titles of images that are not ours repeat.
        title, number = layer.title, 2
        while title in named:
            title, number = f"{layer.title} ({number})", number + 1
        named[title] = layer
    return named


def _content(fact: FileFact) -> FileFact:
    # Which layer brought it is the layers' business; a folder's size is its file system's.
    size = fact.size if fact.kind == "file" else 0
    return FileFact(fact.kind, fact.mode, fact.owner, size, fact.sha256, fact.target)


def _below(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == p or path.startswith(f"{p}/") for p in prefixes)


def _size(fact: FileFact | None) -> int:
    return fact.size if fact else 0


def _rows(found: Sequence[Change[T]]) -> list[dict[str, object]]:
    return [
        {"name": c.name, "what": c.what, "before": _data(c.before), "after": _data(c.after)}
        for c in found
    ]


def _data(value: object) -> object:
    return asdict(value) if isinstance(value, FileFact | LayerFact | Release) else value
