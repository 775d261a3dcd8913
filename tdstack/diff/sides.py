"""What a side of a comparison is, told by its name; pure but for asking whether there is a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tdstack.errors import UsageError

FORMS = (
    "an image (localhost/..., or HOST/PATH:TAG in a registry), an OCI archive, a lock (a file, or "
    "REV:versions.lock), or container:NAME"
)


@dataclass(frozen=True)
class EngineImage:
    """An image in the engine."""

    ref: str


@dataclass(frozen=True)
class RegistryImage:
    """An image in a registry."""

    ref: str


@dataclass(frozen=True)
class Archive:
    """An OCI archive: a tar as `invoke build --output` writes it."""

    path: Path


@dataclass(frozen=True)
class LockFile:
    """A lock in a file."""

    path: Path


@dataclass(frozen=True)
class LockRevision:
    """A lock of a revision in version control."""

    revision: str
    path: str


@dataclass(frozen=True)
class Container:
    """A container of the engine."""

    name: str


Side = EngineImage | RegistryImage | Archive | LockFile | LockRevision | Container


def parse_side(text: str, where: str) -> Side:
    """Return what `text` names; a file that is there goes before everything else.

    Raises: UsageError for what is none of the forms.
    """
    path = Path(text)
    if text and path.is_file():
        return LockFile(path) if path.suffix in (".lock", ".json") else Archive(path)
    if text.startswith("container:") and (name := text.removeprefix("container:")):
        return Container(name)
    if match := re.fullmatch(r"([^:\s-][^:\s]*):([^:\s]+\.lock)", text):
        return LockRevision(match[1], match[2])
    head, _, rest = text.partition("/")
    if rest and head == "localhost":
        return EngineImage(text)
    # The rule of Docker's and containers' tools: a first part with a dot or a port is a host.
    if rest and ("." in head or ":" in head) and not text.startswith((".", "/")):
        return RegistryImage(text)
    raise UsageError("this names nothing to compare", where=f"{where} {text!r}", expected=FORMS)
