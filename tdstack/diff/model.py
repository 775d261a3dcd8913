"""A snapshot: what one image, lock or running container says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["file", "folder", "link", "other"]


@dataclass(frozen=True)
class FileFact:
    """One name in a file system.

    `mode` are the permission bits, `owner` is `uid:gid`, `size` is in bytes. `sha256` is that of
    a file's content, empty for what has none; `target` is where a link points. `layer` is the
    title of the layer that brought it, empty where there are no layers.
    """

    kind: Kind
    mode: int
    owner: str = "0:0"
    size: int = 0
    sha256: str = ""
    target: str = ""
    layer: str = ""


@dataclass(frozen=True)
class LayerFact:
    """One layer: its title, the sha256 of its uncompressed tar, and that tar's size in bytes."""

    title: str
    diff_id: str
    size: int


@dataclass(frozen=True)
class Release:
    """The versions of a package that are there, and the sha256 of their files, where known.

    An image has one version of a package; a whole lock may have several.
    """

    versions: tuple[str, ...]
    sha256: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = ", ".join(self.versions)
        if len(self.sha256) == 1:
            return f"{text} ({self.sha256[0][:12]})"
        return f"{text} ({len(self.sha256)} files)" if self.sha256 else text

    def same(self, other: Release) -> bool:
        """Return whether both are the same; hashes count where both sides know them."""
        known = self.sha256 and other.sha256
        return self.versions == other.versions and (not known or self.sha256 == other.sha256)


@dataclass(frozen=True)
class Snapshot:
    """What one side of a comparison knows. None stands for what it cannot tell.

    `packages` has names such as `debian: gcc` and `python: torch`; `cubins` maps
    `cu124/sm_90/<variant>` to a sha256; `altered` maps paths of installed files to how they
    differ from what their package recorded; `settings` are the choices behind an image, or all
    that a lock says beside packages. `transient` are path prefixes that an engine fills in every
    running container, so that they tell nothing.
    """

    name: str
    id: str = ""
    packages: Mapping[str, Release] = field(default_factory=dict)
    settings: Mapping[str, str] | None = None
    files: Mapping[str, FileFact] | None = None
    layers: tuple[LayerFact, ...] | None = None
    cubins: Mapping[str, str] | None = None
    altered: Mapping[str, str] | None = None
    env: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    manifest: Mapping[str, Any] | None = None
    transient: tuple[str, ...] = ()
