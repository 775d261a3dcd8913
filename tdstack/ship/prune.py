"""Which images of a registry nothing reaches any more, and what they weigh. Pure.

What stays: everything that a rolling tag, a tag of `--keep` or a tag of unknown form reaches, in
each of the repositories: the manifests of its index, the chain of layers below them by key, and
what is attached to any of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tdstack.errors import UsageError
from tdstack.registry.reference import Repository
from tdstack.ship.names import is_attachment, is_full

_KEY_TAG = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True)
class Held:
    """A manifest or an index that a repository holds.

    Attributes:
        size: bytes of the document itself.
        blobs: sizes in bytes by digest, the configuration's among them.
        children: digests of the documents that an index names.
        key, parent: the content keys of a layer's image and of the one below it.
        subject: the digest of the image that this is attached to.
    """

    repository: Repository
    digest: str
    tags: tuple[str, ...]
    size: int
    blobs: Mapping[str, int] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    key: str = ""
    parent: str = ""
    subject: str = ""

    @property
    def name(self) -> str:
        """Return what people call it."""
        tags = [tag for tag in self.tags if not is_attachment(tag)]
        return f"{self.repository}{':' if tags else '@'}{', '.join(tags) or self.digest}"


@dataclass(frozen=True)
class Pruning:
    """What goes, in an order that never leaves a tag without its image, and what that frees.

    `freed` is in bytes; the registry's own garbage collection frees them.
    """

    goes: tuple[Held, ...]
    stays: tuple[Held, ...]
    freed: int


def decide(held: Sequence[Held], root: Repository, keep: Iterable[str] = ()) -> Pruning:
    """Say what goes from `root` and the repositories of its layers.

    Raises: UsageError for a tag to keep that is not there.
    """
    kept = set(keep)
    if lacking := sorted(
        kept - {tag for one in held if one.repository == root for tag in one.tags}
    ):
        raise UsageError("no such tag", where=f"--keep {', '.join(lacking)}", expected=str(root))
    reached = _reached(held, [one for one in held if _is_named(one, root, kept)])
    goes = [one for one in held if id(one) not in reached]
    stays = [one for one in held if id(one) in reached]
    needed = _weights(stays)
    freed = sum(size for digest, size in _weights(goes).items() if digest not in needed)
    return Pruning(tuple(sorted(goes, key=_order)), tuple(stays), freed)


def _is_named(one: Held, root: Repository, kept: set[str]) -> bool:
    if one.repository == root:
        own = [tag for tag in one.tags if not is_attachment(tag)]
        return any(tag in kept or not is_full(tag) for tag in own)
    return any(not (is_attachment(tag) or _KEY_TAG.fullmatch(tag)) for tag in one.tags)


def _reached(held: Sequence[Held], named: Sequence[Held]) -> set[int]:
    places = {(one.repository, one.digest): one for one in held}
    by_key: dict[str, list[Held]] = {}
    attached: dict[tuple[Repository, str], list[Held]] = {}
    for one in held:
        if one.key:
            by_key.setdefault(one.key, []).append(one)
        if one.subject:
            attached.setdefault((one.repository, one.subject), []).append(one)

    def next_to(one: Held) -> Iterator[Held]:
        yield from (
            places[one.repository, digest]
            for digest in one.children
            if (one.repository, digest) in places
        )
        # By its own key too: the final image is also the topmost layer.
        for key in filter(None, (one.key, one.parent)):
            yield from by_key.get(key, ())
        yield from attached.get((one.repository, one.digest), ())

    reached: set[int] = set()
    waiting = list(named)
    while waiting:
        one = waiting.pop()
        if id(one) not in reached:
            reached.add(id(one))
            waiting += next_to(one)
    return reached


def _weights(some: Iterable[Held]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in some:
        found |= {one.digest: one.size, **one.blobs}
    return found


def _order(one: Held) -> int:
    """Indexes before their manifests, and what is attached before what it is attached to."""
    if one.children and not one.subject:
        return 0
    return 1 if one.subject else 2
