"""Lock and wishes -> the stack: exactly which packages, in which layer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from packaging.utils import parse_wheel_filename

from tdstack.errors import IntegrityError, UsageError
from tdstack.fork.fit import check_fit, record_notes, requirement_notes, runs_on
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import (
    Arch,
    LayerName,
    Lock,
    LockedFile,
    LockedLine,
    LockedRootfs,
    Platform,
    PythonMinor,
    TorchVariant,
)
from tdstack.tags import MACHINE, numbers, tag_ranks

T = TypeVar("T", bound=str)
Flavour = Literal["distributed", "stock"]
FLAVOURS: tuple[Flavour, ...] = ("distributed", "stock")
TORCH_VARIANTS: tuple[TorchVariant, ...] = ("cuda", "cpu", "none")
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")
# Every layer stands on what changes less often: a CUDA line differs from its siblings in the
# last two layers only, so four lines share one torch layer, on disk and in a registry.
LAYER_ORDER: tuple[LayerName, ...] = ("base", "torch", "nvshmem", "triton", "cuda", "kernels")
# Where a stand-alone CPython lies in the image.
CPYTHON_PLACE = "opt/tdstack/python"
# Images that nobody looked into yet: wheels must run on glibc as old as Ubuntu 22.04's.
GLIBC_OF_OTHER_BASES = "2.35"


@dataclass(frozen=True)
class CPython:
    """A stand-alone CPython: its archive, the folder in it, and what it needs of the system."""

    file: LockedFile
    python: PythonMinor
    root: str
    glibc: str
    machine: str


@dataclass(frozen=True)
class BaseFacts:
    """What was found in a base image: the path of its Python, and its glibc as `2.39`."""

    interpreter: str
    glibc: str


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked against nothing yet.

    `base_facts` are those of the image that `base` names, once it was looked into.
    `archs` are the GPU architectures to compile for, in any order; none: all of the line's.
    """

    cuda: str = "12.4"
    triton: str = "distributed"
    torch: str = "cuda"
    platform: str = "linux/amd64"
    python: str | None = None
    base: str = "rootfs"
    fork: ForkWheel | None = None
    base_facts: BaseFacts | None = None
    cpython: CPython | None = None
    archs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Package:
    """One package of the stack. `file` is None while Triton-distributed is not acquired."""

    name: str
    version: str
    file: LockedFile | None
    origin: Literal["index", "wheel", "commit"]


@dataclass(frozen=True)
class Stack:
    """One CUDA line, one flavour, one target: every package of it.

    `archs` are those of the line's GPU architectures that kernels are compiled for, in its order.
    `interpreter` is the base's Python; None while the base image was not looked into.
    """

    cuda: str
    line: LockedLine
    archs: tuple[Arch, ...]
    flavour: Flavour
    torch: TorchVariant
    platform: Platform
    python: PythonMinor
    base: str
    rootfs: LockedRootfs | None
    packages: dict[LayerName, tuple[Package, ...]]
    fork: ForkWheel | None = None
    interpreter: str | None = None
    cpython: CPython | None = None
    notes: tuple[str, ...] = ()

    @property
    def restricted(self) -> bool:
        """Return whether kernels are compiled for fewer architectures than the line has."""
        return self.archs != tuple(self.line.archs)

    def all_packages(self) -> Iterator[Package]:
        """Yield the packages in layer order."""
        for layer in LAYER_ORDER:
            yield from self.packages.get(layer, ())


def is_rootfs(base: str) -> bool:
    """Return whether a base is one of ours: `rootfs`, or `rootfs:SUITE`; not an image."""
    return base.partition(":")[0] == "rootfs"


def make_stack(lock: Lock, request: Request) -> Stack:
    """Select the stack that `request` names out of the lock.

    Raises: UsageError for a line, arch, flavour, variant, platform or Python that the lock
    does not hold, naming the ones it holds; IntegrityError for a fork wheel that does not fit.
    """
    line = lock.lines.get(request.cuda)
    if line is None:
        raise UsageError(
            f"unknown CUDA line {request.cuda!r}",
            where="--cuda",
            expected=", ".join(sorted(lock.lines, key=numbers)),
        )
    archs = _archs(lock, request, line)
    flavour = _one_of(request.triton, FLAVOURS, "--triton")
    torch = _one_of(request.torch, TORCH_VARIANTS, "--torch")
    platform = _one_of(request.platform, PLATFORMS, "--platform")
    fork = request.fork if flavour == "distributed" else None
    rootfs = _rootfs(lock, request, platform, fork)
    python = request.python or _python(request, rootfs, fork)
    _check_cpython(request.cpython, python, platform, rootfs)
    found = [c for c in lock.closures if (c.set, c.torch) == (line.set, torch)]
    closure = next((c for c in found if (c.python, c.platform) == (python, platform)), None)
    if closure is None:
        held = sorted(
            {f"--torch {torch} --python {c.python} --platform {c.platform}" for c in found}
        )
        raise UsageError(
            f"the lock holds no {line.set} set for torch {torch}, Python {python} on {platform}",
            where="versions.lock: closures",
            expected="; ".join(held) or "another --torch (cuda, none)",
        )
    known = request.base_facts.glibc if request.base_facts else ""
    glibc = rootfs.glibc if rootfs else known or GLIBC_OF_OTHER_BASES
    packages: dict[LayerName, tuple[Package, ...]] = {}
    for layer, refs in [*closure.layers.items(), ("cuda", line.toolkit[platform])]:
        packages[layer] = tuple(_package(lock, ref, python, platform, glibc) for ref in refs)
    _check_missing(closure.missing, flavour, python, platform)
    notes = _notes(request.cuda, line, archs, torch, platform, packages)
    if flavour == "distributed":
        packages["triton"] = _with_fork(lock, line, request, packages.get("triton", ()))
        if fork:
            certain = rootfs is not None or bool(known)
            notes += check_fit(fork, lock.triton_distributed, python, platform, glibc, certain)
        versions = {p.name: p.version for layer in packages.values() for p in layer}
        if fork and rootfs and rootfs != _rootfs(lock, request, platform, None):
            why = f"{fork.source.name} does not run on the first one"
            notes += (f"base: {rootfs.suite}, as {why}",)
        notes += record_notes(lock.triton_distributed, fork)
        notes += requirement_notes(fork, versions, python) if fork else ()
    return Stack(
        request.cuda,
        line,
        archs,
        flavour,
        torch,
        platform,
        python,
        request.base,
        rootfs,
        packages,
        fork,
        _interpreter(request, rootfs, python),
        request.cpython,
        notes,
    )


def _archs(lock: Lock, request: Request, line: LockedLine) -> tuple[Arch, ...]:
    asked = set(request.archs) or set(line.archs)
    lacking = sorted(asked - set(line.archs))
    if lacking:
        having = [name for name, other in lock.lines.items() if set(lacking) <= set(other.archs)]
        lines = " or ".join(f"--cuda {name}" for name in sorted(having, key=numbers))
        raise UsageError(
            f"CUDA {request.cuda} has no architecture {', '.join(lacking)}",
            where="--arch",
            expected=", ".join(line.archs),
            remedy=f"ask for {lines}, which has it" if lines else "",
        )
    return tuple(arch for arch in line.archs if arch in asked)


def _interpreter(request: Request, rootfs: LockedRootfs | None, python: str) -> str | None:
    if request.cpython:
        return f"/{CPYTHON_PLACE}/bin/python{python}"
    if rootfs:
        return f"/usr/bin/python{python}"
    return request.base_facts.interpreter if request.base_facts else None


def _check_cpython(
    cpython: CPython | None, python: str, platform: Platform, rootfs: LockedRootfs | None
) -> None:
    if cpython is None:
        return
    if cpython.python != python:
        raise UsageError(
            f"{cpython.file.name} is Python {cpython.python}, not {python}",
            where="--python",
            remedy="leave --python out",
        )
    old = rootfs is not None and numbers(cpython.glibc) > numbers(rootfs.glibc)
    if old or cpython.machine != MACHINE[platform]:
        raise IntegrityError(
            f"{cpython.file.name} does not run on this base",
            where="--cpython",
            expected=f"one for {platform}, glibc {rootfs.glibc if rootfs else 'any'} or older",
            got=f"one for {cpython.machine}, glibc {cpython.glibc or 'any'} or newer",
        )


def _python(request: Request, rootfs: LockedRootfs | None, fork: ForkWheel | None) -> str:
    if request.cpython:
        return request.cpython.python
    if rootfs:
        return rootfs.python
    return fork.source.python if fork and fork.source.python else "3.12"


def _notes(
    cuda: str,
    line: LockedLine,
    archs: tuple[Arch, ...],
    torch: TorchVariant,
    platform: Platform,
    packages: dict[LayerName, tuple[Package, ...]],
) -> tuple[str, ...]:
    notes = [f"CUDA {cuda} is experimental: {line.experimental}"] if line.experimental else []
    brought = [p.name for p in packages.get("torch", ()) if p.name.startswith("nvidia-")]
    if torch == "cuda" and not brought:
        notes.append(f"for {platform} the package index holds a CPU build of this torch only")
    if left_out := [arch for arch in line.archs if arch not in archs]:
        notes.append(
            f"kernels are compiled for {', '.join(archs)} only; "
            f"on {', '.join(left_out)} Triton compiles them at first use"
        )
    return tuple(notes)


def _with_fork(
    lock: Lock, line: LockedLine, request: Request, stock: tuple[Package, ...]
) -> tuple[Package, ...]:
    pinned = lock.triton_distributed
    if line.set not in pinned.sets:
        raise UsageError(
            f"Triton-distributed does not exist for CUDA {request.cuda}",
            where="--triton distributed",
            expected=line.experimental,
            remedy="ask for --triton stock, or for a CUDA 12 line",
        )
    if fork := request.fork:
        own = (
            Package("triton", fork.version, fork.file, "wheel"),
            Package("triton-dist", fork.version, fork.alias, "wheel"),
        )
    else:
        version = f"{pinned.base_version}+dist.{pinned.commit[:8]}"
        own = (
            Package("triton", version, None, "commit"),
            Package("triton-dist", version, None, "commit"),
        )
    return (*(p for p in stock if p.name != "triton"), *own)


def _check_missing(
    missing: list[str], flavour: Flavour, python: PythonMinor, platform: Platform
) -> None:
    lacking = [m for m in missing if not (flavour == "distributed" and m.startswith("triton"))]
    if lacking:
        raise UsageError(
            f"{', '.join(lacking)} has no wheel for Python {python} on {platform}",
            where="versions.lock: closures",
            remedy="use --triton distributed with --wheel FILE, or --platform linux/amd64",
        )


def _rootfs(
    lock: Lock, request: Request, platform: Platform, fork: ForkWheel | None
) -> LockedRootfs | None:
    """Return the first root file system that fits the Python asked for and the fork.

    The first one of the platform when the fork fits none: its own check says why.
    """
    if not is_rootfs(request.base):
        return None
    suite = request.base.partition(":")[2]
    of_platform = [r for r in lock.rootfs if r.platform == platform]
    if not of_platform:
        raise UsageError(
            f"the lock holds no root file system for {platform}",
            where="versions.lock: rootfs",
            expected=", ".join(sorted({r.platform for r in lock.rootfs})),
            remedy="name an image of that platform with --base REF@sha256:...",
        )
    named = [r for r in of_platform if suite in ("", r.suite)]
    if not named:
        raise UsageError(
            f"the lock holds no root file system {suite!r}",
            where=f"--base {request.base}",
            expected=", ".join(f"rootfs:{r.suite}" for r in of_platform),
        )
    own = request.cpython
    having = [r for r in named if own or request.python in (None, r.python)]
    if not having:
        theirs = ", ".join(f"{r.suite} has Python {r.python}" for r in named)
        raise UsageError(
            f"no root file system has Python {request.python}",
            where="--python",
            expected=theirs,
            remedy="leave --python out, bring a stand-alone one with --cpython FILE, or name an "
            "image that has it with --base REF@sha256:...",
        )
    pythons = {r.suite: own.python if own else r.python for r in having}
    fitting = [
        r for r in having if fork is None or runs_on(fork, pythons[r.suite], platform, r.glibc)
    ]
    return (fitting or having)[0]


def _package(lock: Lock, ref: str, python: str, platform: Platform, glibc: str) -> Package:
    name, version = ref.split("==")
    return Package(
        name, version, best_wheel(ref, lock.packages[ref], python, platform, glibc), "index"
    )


def best_wheel(
    ref: str, files: Sequence[LockedFile], python: str, platform: Platform, glibc: str
) -> LockedFile:
    """Return the wheel that an installer would choose for the target.

    Raises: UsageError when none fits.
    """
    rank = tag_ranks(python, platform, glibc)
    ranked = [(parse_wheel_filename(file.name)[3] & rank.keys(), file) for file in files]
    fitting = [(min(rank[t] for t in tags), file.name, file) for tags, file in ranked if tags]
    if not fitting:
        raise UsageError(
            f"no wheel of {ref} runs on Python {python}, {platform}, glibc {glibc}",
            where="versions.lock: packages",
            got=", ".join(file.name for file in files),
        )
    return min(fitting)[2]


def _one_of(value: str, valid: tuple[T, ...], where: str) -> T:
    for candidate in valid:
        if candidate == value:
            return candidate
    raise UsageError(f"unknown value {value!r}", where=where, expected=", ".join(valid))
