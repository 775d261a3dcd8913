"""Where NVSHMEM lies in and around an environment, and which version each piece is. Only looks."""

from __future__ import annotations

import csv
import email
import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from ..environment import Answer, Environment, ask
from ..finding import canonical
from ..installed import record_digest
from .bitcode import BitcodeError, device_version

FOLDER = Path("nvidia/nvshmem/lib")  # of every NVSHMEM wheel, in its site
DEVICE = "libnvshmem_device.bc"
HOST = "libnvshmem_host.so"
# The host library holds its own version as a text, beside others that begin in the same way.
SAID = re.compile(rb"NVSHMEM v(\d+\.\d+\.\d+)")
ASK_VERSION = "import nvshmem.core as n; print(n.get_version().libnvshmem_version)"
ROOT = Path("/")
# Where archives, NVIDIA's Debian packages and CUDA toolkits put NVSHMEM.
SYSTEM_FOLDERS = (
    "lib",
    "lib64",
    "usr/lib",
    "usr/lib64",
    "usr/lib/*-linux-gnu",
    "usr/lib/*-linux-gnu/nvshmem/*",
    "usr/local/lib",
    "usr/local/cuda*/lib64",
    "usr/local/nvshmem*/lib",
    "opt/nvidia/nvshmem*",
    "opt/nvidia/nvshmem*/lib",
)


@dataclass(frozen=True)
class Library:
    """A host library; `version` is empty where the file does not tell one."""

    path: Path
    version: str
    sha256: str


@dataclass(frozen=True)
class Bitcode:
    """A device library; `problem` says why `version` is empty."""

    path: Path
    version: str
    problem: str = ""


@dataclass(frozen=True)
class Pointed:
    """A variable that names a place, and the device library there, if any."""

    variable: str
    value: str
    bitcode: Bitcode | None


@dataclass(frozen=True)
class Wheel:
    """An installed distribution.

    `own`, `foreign` and `missing` are the host and device libraries that its RECORD lists: those
    on disk with its bytes, those with other bytes, and those that are not there.
    """

    name: str
    version: str
    site: Path = Path()
    own: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Facts:
    """What there is.

    `host` and `device` are the wheels' own files, `arches` device libraries for one architecture
    each, `copies` all other host libraries. `torch` is empty without torch; `pins` are its
    requirements of NVSHMEM. `told` is what nvshmem4py answers, None without it.
    """

    wheels: tuple[Wheel, ...] = ()
    bindings: tuple[Wheel, ...] = ()
    host: Library | None = None
    copies: tuple[Library, ...] = ()
    device: Bitcode | None = None
    arches: tuple[Bitcode, ...] = ()
    pointed: tuple[Pointed, ...] = ()
    torch: str = ""
    pins: tuple[str, ...] = ()
    told: Answer | None = None


class Digests(dict[Path, str]):
    """SHA-256 of files in hexadecimal, each read once; empty for what cannot be read."""

    def __missing__(self, path: Path) -> str:
        try:
            with path.open("rb") as stream:
                self[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            self[path] = ""
        return self[path]


def gather(environment: Environment, variables: Mapping[str, str]) -> Facts:
    """Look at an environment, and at what `variables` and the loader may put before it."""
    digests = Digests()
    sites = environment.sites
    folder = next((s / FOLDER for s in sites if (s / FOLDER).is_dir()), sites[0] / FOLDER)
    host = next(iter(libraries([folder], digests)), None)
    found = libraries(library_folders(environment, variables), digests, loader_cache())
    inside = libraries((p.parent for s in sites for p in s.rglob(f"{HOST}*")), digests)
    others = {library.path: library for library in [*inside, *found]}
    if host:
        others.pop(host.path, None)
    torch = next(_distributions(sites, r"torch"), None)
    bindings = _wheels(sites, r"nvshmem4py-cu\d+", digests)
    passed_on = {k: v for k, v in variables.items() if k.startswith(("LD_LIBRARY", "NVSHMEM"))}
    return Facts(
        wheels=_wheels(sites, r"nvidia-nvshmem-cu\d+", digests),
        bindings=bindings,
        host=host,
        copies=tuple(others.values()),
        device=read_bitcode(folder / DEVICE),
        arches=tuple(
            bitcode
            for path in sorted(folder.glob("libnvshmem_device_*.bc"))
            if (bitcode := read_bitcode(path))
        ),
        pointed=tuple(pointed(variables)),
        torch=torch[1].get("Version", "") if torch else "",
        pins=tuple(
            required
            for required in (torch[1].get_all("Requires-Dist", []) if torch else [])
            if canonical(required).startswith("nvidia-nvshmem")
        ),
        told=environment.run(ASK_VERSION, passed_on) if bindings else None,
    )


def host_version(path: Path) -> str:
    """Return the version that a host library holds as a text, or "" if it has none.

    It is not loaded: loading would run its code, and two of them answer for one another.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            match = SAID.search(view) if view[:4] == b"\x7fELF" else None
            version = match.group(1).decode() if match else ""
            del match  # it holds on to the view
            return version
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return ""


def read_bitcode(path: Path) -> Bitcode | None:
    """Return the device library at `path`, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return Bitcode(path, device_version(path))
    except (BitcodeError, OSError) as error:
        return Bitcode(path, "", str(error))


def pointed(variables: Mapping[str, str]) -> Iterator[Pointed]:
    """Yield the variables that Triton-distributed takes the device library's place from.

    Parts of it take NVSHMEM_LIBDEVICE_PATH for a folder, others for the file.
    """
    for variable, inner in (("NVSHMEM_LIBDEVICE_PATH", "."), ("NVSHMEM_HOME", "lib")):
        if value := variables.get(variable):
            place = Path(value)
            file = place if place.is_file() else place / inner / DEVICE
            yield Pointed(variable, value, read_bitcode(file))


def library_folders(environment: Environment, variables: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders that a loader, or a user's settings, take host libraries from."""
    yield from (Path(f) for f in variables.get("LD_LIBRARY_PATH", "").split(":") if f)
    if home := variables.get("NVSHMEM_HOME"):
        yield Path(home) / "lib"
    yield environment.prefix / "lib"
    for pattern in SYSTEM_FOLDERS:
        yield from sorted(ROOT.glob(pattern))


def loader_cache() -> list[Path]:
    """Return the host libraries in the dynamic loader's cache."""
    for program in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
        answer = ask([program, "-p"])
        if not answer.status:
            break
    lines = (line.strip() for line in answer.out.splitlines())
    return [Path(line.split(" => ")[-1]) for line in lines if line.startswith(HOST)]


def libraries(
    folders: Iterable[Path], digests: Digests, more: Iterable[Path] = ()
) -> tuple[Library, ...]:
    """Return the host libraries in `folders`, and those of `more`: each file once, links never."""
    paths = [path for folder in folders for path in sorted(folder.glob(f"{HOST}*"))]
    real = dict.fromkeys(Path(os.path.realpath(path)) for path in [*paths, *more])
    return tuple(Library(p, host_version(p), digests[p]) for p in real if p.is_file())


def _distributions(sites: Iterable[Path], pattern: str) -> Iterator[tuple[Path, Message]]:
    """Yield dist-info folder and metadata of the distributions whose name is like `pattern`."""
    for site in sites:
        for info in sorted(site.glob("*.dist-info")):
            name = info.name.removesuffix(".dist-info").rpartition("-")[0]
            if re.fullmatch(pattern, canonical(name)):
                yield info, email.message_from_string(_text(info / "METADATA"))


def _wheels(sites: Iterable[Path], pattern: str, digests: Digests) -> tuple[Wheel, ...]:
    return tuple(_wheel(*found, digests) for found in _distributions(sites, pattern))


def _wheel(info: Path, metadata: Message, digests: Digests) -> Wheel:
    name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
    groups: dict[str, list[str]] = {"own": [], "foreign": [], "missing": []}
    for row in csv.reader(_text(info / "RECORD").splitlines()):
        path = Path(row[0]) if row else Path()
        if len(row) < 2 or not row[1].startswith("sha256=") or path.parent != FOLDER:
            continue
        if path.suffix != ".bc" and not path.name.startswith(HOST):
            continue
        file = Path(os.path.realpath(info.parent / path))
        kind = "own" if row[1] == record_digest(bytes.fromhex(digests[file])) else "foreign"
        if not file.is_file():
            kind = "missing"
        groups[kind].append(path.name)
    return Wheel(
        canonical(name),
        metadata.get("Version", version),
        info.parent,
        own=tuple(groups["own"]),
        foreign=tuple(groups["foreign"]),
        missing=tuple(groups["missing"]),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
