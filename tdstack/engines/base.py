"""What tdstack asks of a container engine, and the values that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tdstack.assemble.image import Image


@dataclass(frozen=True)
class Probe:
    """Whether an engine can be used here, and why or why not."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class StoredImage:
    """An image in an engine's store. `size` is in bytes, as the engine reports it."""

    id: str
    digest: str
    labels: Mapping[str, str]
    env: Mapping[str, str]
    diff_ids: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Mount:
    """A host folder made visible in a container."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class RunResult:
    """How a command in a container ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Resources:
    """What a container gets beyond what its engine gives; sizes in bytes.

    Attributes:
        shm: size of /dev/shm; None leaves the engine's (Docker: 64 MiB).
        stack: limit of each thread's stack; None leaves the engine's.
        locked_memory: whether memory may be locked without a limit, as RDMA needs.
        gpus: whether all GPUs of the host are passed through.
    """

    shm: int | None = None
    stack: int | None = None
    locked_memory: bool = False
    gpus: bool = False


@dataclass(frozen=True)
class RunRequest:
    """A command in a container. The network is always off, but for the container's loopback."""

    ref: str
    command: Sequence[str]
    mounts: Sequence[Mount] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"
    limit_s: float = 900
    resources: Resources = Resources()


class Engine(Protocol):
    """A container engine."""

    name: str

    def describe(self) -> str:
        """Return name and version."""
        ...

    def storage(self) -> Path | None:
        """Return the folder of the engine's store, where it is on this host."""
        ...

    def image(self, ref: str) -> StoredImage | None:
        """Return the image called `ref`, or None."""
        ...

    def load(self, layout: Path, image: Image, ref: str) -> None:
        """Take an image over under the name `ref`.

        `layout` is an OCI image layout; blobs of layers that the engine holds already may be
        absent from it. Raises: HostError when the engine refuses.
        """
        ...

    def tag(self, ref: str, name: str) -> None:
        """Give the image `ref` a further name."""
        ...

    def untag(self, ref: str) -> None:
        """Remove a name, and the image with it when it was the last one; absence is fine."""
        ...

    def pull(self, ref: str) -> str:
        """Bring `ref` from its registry; return it as name@digest.

        Raises: UpstreamError when it cannot be read.
        """
        ...

    def export(self, ref: str, layout: Path, skip: Collection[str] = ()) -> Image:
        """Write the image into the OCI layout, layers uncompressed; return its description.

        Layers whose diff ids are in `skip` need not come; with it, the image must be one of ours,
        whose labels say how large they are.
        """
        ...

    def owner(self) -> str:
        """Return the user, as `uid:gid` in a container, whose files belong to us on the host."""
        ...

    def run(self, request: RunRequest, say: Callable[[str], None] | None = None) -> RunResult:
        """Run a command in a throw-away container, without a network.

        `say` gets each line of its stderr as it is written.
        Raises: HostError when the container cannot be started, or cannot get the resources;
        TimeLimitError past its limit.
        """
        ...
