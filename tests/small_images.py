"""Images of a few files, made as a build makes them: tars, a configuration, a layout."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tdstack.assemble.entries import Entry, arrange, from_bytes
from tdstack.assemble.image import Image, Step, write_archive, write_layout
from tdstack.assemble.tar import Blob, write_tar
from tdstack.engines.base import Engine
from tdstack.lock.model import Lock
from tdstack.plan import PREFIX, slice_of
from tdstack.stack import Request, Stack, make_stack
from tdstack.wheelhouse.store import sha256_of

SITE = f"{PREFIX}/lib/python3.11/site-packages"
Layers = Mapping[str, Sequence[Entry]]


@dataclass(frozen=True)
class SmallImage:
    """An image and the layout that holds its blobs."""

    layout: Path
    image: Image

    def into(self, engine: Engine, ref: str) -> str:
        engine.load(self.layout, self.image, ref)
        return ref

    def archive(self, out: Path) -> Path:
        write_layout(self.image, self.layout, "localhost/small:1")
        write_archive(self.image, self.layout, out)
        return out


@dataclass(frozen=True)
class Looks:
    """What an image's configuration says."""

    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin"})
    labels: Mapping[str, str] = field(default_factory=dict)


PLAIN = Looks()


def make_image(folder: Path, layers: Layers, looks: Looks = PLAIN) -> SmallImage:
    """Write an image of `layers`, titles with their entries from the bottom up."""
    layout = folder / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    steps = tuple(
        Step(write_tar(arrange(entries), blobs), title) for title, entries in layers.items()
    )
    return SmallImage(layout, Image("linux/amd64", steps, env=looks.env, labels=looks.labels))


def slim_stack(lock: Lock) -> Stack:
    return make_stack(lock, Request(triton="stock", torch="none", archs=("sm_90",)))


def locked_entries(stack: Stack) -> list[Entry]:
    """What an image of `stack` says of itself, without the packages' own files."""
    assert stack.rootfs is not None
    status = "".join(
        f"Package: {d.package}\nStatus: install ok installed\nVersion: {d.version}\n\n"
        for d in stack.rootfs.packages
    )
    manifest = json.dumps(slice_of(stack)).encode()
    entries = [
        from_bytes("var/lib/dpkg/status", status.encode()),
        from_bytes(f"{PREFIX}/manifest.json", manifest),
        Entry("home/tdstack", "folder", 0o755),
    ]
    for package in stack.all_packages():
        entries.append(metadata(package.name, package.version))
    return [*entries, metadata("gemm-allreduce", "0.1.0")]


def metadata(name: str, version: str, site: str = SITE) -> Entry:
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText.\n"
    return from_bytes(f"{site}/{name}-{version}.dist-info/METADATA", text.encode())


def plant(engine: Engine, ref: str, path: str, planted: str, folder: Path) -> int:
    """Make `planted` of `ref` with one byte of a file changed; return the byte's offset.

    The image keeps its labels, so that it claims to be what it was made of.
    """
    layout = folder / "layout"
    image = engine.export(ref, layout)
    blobs = layout / "blobs" / "sha256"
    for number, step in enumerate(image.steps):
        tar = blobs / step.blob.sha256
        with tarfile.open(tar) as archive:
            member = next((m for m in archive if m.name == path and m.isfile()), None)
        if member is None:
            continue
        offset = member.size // 2
        with tar.open("r+b") as stream:
            stream.seek(member.offset_data + offset)
            byte = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([byte[0] ^ 1]))
        blob = Blob(sha256_of(tar), step.blob.size)
        tar.rename(blobs / blob.sha256)
        steps = list(image.steps)
        steps[number] = replace(step, blob=blob)
        engine.load(layout, replace(image, steps=tuple(steps)), planted)
        return offset
    raise LookupError(path)
