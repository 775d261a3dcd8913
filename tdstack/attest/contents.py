"""What is in an image, with the sha256 of every file that it was made from. Pure.

The same from a plan and from an image's own slice of the lock, so that one can be held against
the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from packageurl import PackageURL

from tdstack.attest.lockslice import LockSlice, SliceFork
from tdstack.lock.model import LayerName, LockedDeb, LockedFile, LockedRootfs
from tdstack.plan import Plan, slice_of
from tdstack.stack import LAYER_ORDER, is_rootfs
from tdstack.tags import line_tag

Kind = Literal["deb", "wheel", "rootfs", "image", "cpython"]


@dataclass(frozen=True)
class Material:
    """One thing from outside. `sha256` is empty where the bytes are not known.

    `file` is the name of the file that has these bytes; `origin` is where a wheel came from:
    index, wheel (given by the user) or commit (built from the pinned sources).
    """

    kind: Kind
    name: str
    version: str
    sha256: str
    layer: LayerName
    purl: str
    file: str = ""
    origin: str = ""

    @property
    def identity(self) -> str:
        """Return type, name and version: what a package is called without its bytes."""
        return identity_of(self.purl)


@dataclass(frozen=True)
class Kernels:
    """Our own kernels: how many cubins per architecture, and what compiled them.

    `bundle` is the sha256 of the cubins' manifest, `record` that of the RECORD of the installed
    wheel: both are known of an image alone, and empty for a plan.
    """

    version: str
    cubins: Mapping[str, int]
    triton: str
    ptxas: str
    bundle: str = ""
    record: str = ""


@dataclass(frozen=True)
class Contents:
    """All of an image. `materials` are in the order of the layers."""

    slice: LockSlice
    materials: tuple[Material, ...]
    kernels: Kernels

    @property
    def fork(self) -> SliceFork | None:
        """Return Triton-distributed as it was built; None for stock Triton."""
        return self.slice.fork

    @property
    def cubins_name(self) -> str:
        """Return the name of the distribution that brings the cubins."""
        return f"gemm-allreduce-cubins-{line_tag(self.slice.cuda)}"


def contents_of(
    slice_: LockSlice, kernels: Kernels, rootfs: Sequence[LockedRootfs] = ()
) -> Contents:
    """Return the contents that a slice names.

    A slice has the versions of Debian packages; their hashes are those of the root file system
    among `rootfs` that gives the slice's tar.
    """
    known = next((r for r in rootfs if r.tar.sha256 == slice_.base.tar), None)
    found = [*_base(slice_, known)]
    for layer in LAYER_ORDER:
        for package in slice_.layers.get(layer, ()):
            purl = PackageURL("pypi", None, package.name, package.version).to_string()
            found.append(
                Material(
                    "wheel",
                    package.name,
                    package.version,
                    package.sha256,
                    layer,
                    purl,
                    package.file,
                    package.origin,
                )
            )
    return Contents(slice_, tuple(found), kernels)


def differences(contents: Contents, found: Mapping[str, str]) -> list[str]:
    """Return where a list of packages and the contents disagree, one line for each package.

    `found` maps identities to sha256. A package of the contents whose bytes are not known is
    compared by version alone.
    """
    wanted = {m.identity: m.sha256 for m in contents.materials}
    wrong = [f"{name} is not listed" for name in sorted(wanted.keys() - found.keys())]
    wrong += [f"{name} is not in the image" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] and wanted[name] != found[name]:
            got = f"sha256 {found[name][:12]}" if found[name] else "no hash"
            wrong.append(f"{name}: {got}, the image's is {wanted[name][:12]}")
    return wrong


def identity_of(purl: str) -> str:
    """Return a package URL without its qualifiers."""
    return purl.partition("?")[0]


def planned_contents(plan: Plan, kernels_version: str) -> Contents:
    """Return the contents that a plan would give."""
    slice_ = LockSlice.model_validate(slice_of(plan.stack))
    return contents_of(
        slice_,
        planned_kernels(slice_, plan.cubins, kernels_version),
        [plan.stack.rootfs] if plan.stack.rootfs else (),
    )


def planned_kernels(slice_: LockSlice, cubins: Mapping[str, int], version: str) -> Kernels:
    """Return the kernels that a build of the slice would compile."""
    ptxas = next(p.version for p in slice_.toolkit if p.name.startswith("nvidia-cuda-nvcc"))
    return Kernels(version, dict(cubins), slice_.version_of("triton"), ptxas)


def _base(slice_: LockSlice, rootfs: LockedRootfs | None) -> Iterator[Material]:
    base = slice_.base
    if not is_rootfs(base.image):
        name, _, digest = base.image.partition("@sha256:")
        last = name.rsplit("/", 1)[-1]
        purl = PackageURL(
            "oci", None, last.partition(":")[0], f"sha256:{digest}", {"repository_url": name}
        ).to_string()
        yield Material("image", name, f"sha256:{digest}", digest, "base", purl)
    else:
        purl = PackageURL("generic", "debian", "rootfs", base.suite).to_string()
        file = rootfs.tar.name if rootfs else ""
        yield Material("rootfs", "debian", base.suite, base.tar, "base", purl, file)
        if rootfs:
            yield from (_deb(deb, base.suite) for deb in rootfs.packages)
        else:
            yield from _unhashed(base.packages, base.suite)
    if base.cpython:
        yield _cpython(base.cpython, slice_.python)


def _deb(deb: LockedDeb, suite: str) -> Material:
    file = PurePosixPath(deb.name).name
    arch = file.removesuffix(".deb").rsplit("_", 1)[-1]
    purl = _deb_purl(deb.package, deb.version, {"arch": arch, "distro": suite})
    return Material("deb", deb.package, deb.version, deb.sha256, "base", purl, deb.name)


def _unhashed(packages: Mapping[str, str], suite: str) -> Iterable[Material]:
    for name, version in packages.items():
        yield Material(
            "deb", name, version, "", "base", _deb_purl(name, version, {"distro": suite})
        )


def _deb_purl(name: str, version: str, qualifiers: dict[str, str]) -> str:
    return PackageURL("deb", "debian", name, version, qualifiers).to_string()


def _cpython(file: LockedFile, python: str) -> Material:
    purl = PackageURL("generic", None, "cpython", python, {"file_name": file.name}).to_string()
    return Material("cpython", "cpython", python, file.sha256, "base", purl, file.name)
