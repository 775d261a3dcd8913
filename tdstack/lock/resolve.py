"""Resolve Python requirements to closures of exact versions and hashed files, through uv.

uv reads package metadata only; no wheel is downloaded. A closure is resolved per Python
version and platform, because the set of packages differs between them (torch's CUDA wheels
exist on linux/amd64 alone).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tdstack.errors import HostError, UpstreamError, UsageError
from tdstack.lock.asked import Asked, AskedSet, Targets
from tdstack.lock.model import (
    Closure,
    LayerName,
    LockedLine,
    LockedWheel,
    Platform,
    PythonMinor,
    TorchVariant,
)
from tdstack.pipconf import PipConfig

LAYERS: tuple[LayerName, ...] = ("base", "torch", "nvshmem", "triton", "cuda", "kernels")
UV_PLATFORM: dict[Platform, str] = {
    "linux/amd64": "x86_64-manylinux_2_36",
    "linux/arm64": "aarch64-manylinux_2_36",
}
MACHINE: dict[Platform, str] = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
Target = tuple[str, TorchVariant, PythonMinor, Platform]
WORKERS = 4  # uv waits for the index most of the time
REFUSED = {
    "triton-dist": "the index's triton-dist has no compiled library and overwrites Triton's files"
}
UNREACHABLE = re.compile(
    r"error sending request|failed to fetch|dns error|connect|timed out|tls|certificate", re.I
)


class NoWheelError(UsageError):
    """A requirement exists, but has no wheel for the target."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name} has no wheel for the target", got=message)
        self.name = name


@dataclass(frozen=True)
class Resolution:
    """What uv answered: per package its version, its wheels and who requires it."""

    versions: dict[str, str]
    wheels: dict[str, tuple[LockedWheel, ...]]
    required_by: dict[str, frozenset[str]]

    def ref(self, name: str) -> str:
        """Return `name==version`."""
        return f"{name}=={self.versions[name]}"


def uv_version() -> str:
    """Return the version line of the uv in this environment."""
    return _run_uv(["--version"], {}).stdout.strip().split(" (")[0]


def resolve(
    requirements: Iterable[str],
    python: PythonMinor,
    platform: Platform,
    keep: Iterable[str],
    pip: PipConfig,
) -> Resolution:
    """Resolve `requirements` for one target.

    `keep` holds `name==version` pins that stay unless the requirements forbid them.
    Raises: UsageError for requirements that contradict each other or name a refused package;
    UpstreamError when the index cannot be reached; HostError when uv is missing.
    """
    asked = sorted(requirements)
    for text in asked:
        try:
            name = canonicalize_name(Requirement(text).name)
        except InvalidRequirement as error:
            raise UsageError("not a requirement", where=text, got=str(error)) from error
        if name in REFUSED:
            raise UsageError(f"{name} is refused", where=text, got=REFUSED[name])
    with tempfile.TemporaryDirectory(prefix="tdstack-lock-") as folder:
        source, pylock, pins = (
            Path(folder, n) for n in ("asked.in", "pylock.toml", "requirements.txt")
        )
        source.write_text("\n".join(asked) + "\n")
        # uv reads an existing output file as preferences: this is how pins stay.
        pins.write_text("\n".join(sorted(set(keep))) + "\n")
        common = ["pip", "compile", str(source), "--quiet", "--no-header", "--no-build"]
        common += ["--python-version", python, "--python-platform", UV_PLATFORM[platform]]
        # Naming an interpreter spares the search for one of the target's version.
        common += [
            "--python",
            sys.executable,
            "--no-config",
            "--index-strategy",
            "unsafe-best-match",
        ]
        environment = pip.uv_environment()
        _run_uv([*common, "--annotation-style", "line", "-o", str(pins)], environment)
        locked_pins = _versions(pins.read_text())
        source.write_text("\n".join(f"{n}=={v}" for n, v in sorted(locked_pins.items())) + "\n")
        _run_uv([*common, "--no-deps", "-o", str(pylock)], environment)
        return _parse(tomllib.loads(pylock.read_text()), pins.read_text())


def resolve_what_exists(
    requirements: Iterable[str],
    python: PythonMinor,
    platform: Platform,
    keep: Iterable[str],
    pip: PipConfig,
) -> tuple[Resolution, list[str]]:
    """Resolve, leaving out asked-for packages that have no wheel for this target.

    Returns: the resolution, and the requirements left out (stock Triton has no wheel for
    linux/arm64, say); the plan refuses such a target unless the package comes otherwise.
    Raises: as `resolve`.
    """
    wanted, missing = list(requirements), list[str]()
    while True:
        try:
            return resolve(wanted, python, platform, keep, pip), missing
        except NoWheelError as error:
            left_out = [t for t in wanted if canonicalize_name(Requirement(t).name) == error.name]
            if not left_out:
                raise
            missing += left_out
            wanted = [t for t in wanted if t not in left_out]


def layer_of(resolution: Resolution, roots: Mapping[str, LayerName]) -> dict[str, LayerName]:
    """Give every package the earliest layer that needs it; a root stays where it was asked.

    Pure. Packages that a later layer pins by name (triton, which torch requires too) stay in
    that layer, so that the layer holds all of what it is named for.
    """
    placed: dict[str, LayerName] = dict(roots)
    changed = True
    while changed:
        changed = False
        for name, dependents in resolution.required_by.items():
            if name in roots:
                continue
            known = [placed[d] for d in dependents if d in placed]
            if known:
                first = min(known, key=LAYERS.index)
                changed |= placed.get(name) != first
                placed[name] = first
    return placed


def resolve_closures(
    asked: Asked, keep: Mapping[tuple[str, str, str, str], Iterable[str]], pip: PipConfig
) -> tuple[list[Closure], dict[str, list[LockedWheel]]]:
    """Resolve every (set, torch variant, Python, platform) that is asked for."""
    targets = [
        (set_name, torch, python, platform)
        for set_name, wanted in sorted(asked.sets.items())
        for torch, variant in sorted(wanted.torch.items())
        for python, platform in product(
            (variant.targets or asked.targets).python, (variant.targets or asked.targets).platform
        )
    ]

    def one(target: Target) -> tuple[Closure, Resolution]:
        set_name, torch, python, platform = target
        roots = _roots(asked.sets[set_name], torch)
        got, missing = resolve_what_exists(
            [text for texts in roots.values() for text in texts],
            python,
            platform,
            keep.get(target, ()),
            pip,
        )
        asked_in = {
            str(canonicalize_name(Requirement(text).name)): layer
            for layer, texts in roots.items()
            for text in texts
        }
        layers = _by_layer(got, layer_of(got, asked_in))
        closure = Closure(
            set=set_name,
            torch=torch,
            python=python,
            platform=platform,
            layers=layers,
            missing=missing,
        )
        return closure, got

    files: dict[str, dict[str, LockedWheel]] = {}
    closures = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for closure, got in pool.map(one, targets):
            closures.append(closure)
            _collect(files, got, asked.targets)
    return closures, {ref: [by[n] for n in sorted(by)] for ref, by in files.items()}


def resolve_lines(
    asked: Asked, keep: Iterable[str], pip: PipConfig
) -> tuple[dict[str, LockedLine], dict[str, list[LockedWheel]]]:
    """Resolve the toolkit wheel of every CUDA line; its ptxas is all that is used of it."""
    lines: dict[str, LockedLine] = {}
    files: dict[str, dict[str, LockedWheel]] = {}
    for name, line in sorted(asked.lines.items()):
        toolkit: dict[Platform, list[str]] = {}
        for platform in asked.targets.platform:
            got = resolve([line.toolkit], asked.targets.python[0], platform, keep, pip)
            # Only the toolkit itself: what it pulls in (headers, run time) comes with torch.
            root = canonicalize_name(Requirement(line.toolkit).name)
            toolkit[platform] = [got.ref(root)]
            only = Resolution({root: got.versions[root]}, {root: got.wheels[root]}, {})
            _collect(files, only, asked.targets)
        lines[name] = LockedLine(
            set=line.set,
            ptxas=line.ptxas,
            driver_floor=line.driver_floor,
            archs=line.archs,
            experimental=line.experimental,
            toolkit=toolkit,
        )
    return lines, {ref: [by[n] for n in sorted(by)] for ref, by in files.items()}


def _roots(wanted: AskedSet, torch: TorchVariant) -> dict[LayerName, list[str]]:
    return {**wanted.layers, "torch": wanted.torch[torch].layers["torch"]}


def _by_layer(got: Resolution, placed: Mapping[str, LayerName]) -> dict[LayerName, list[str]]:
    layers: dict[LayerName, list[str]] = {}
    for name in sorted(got.versions):
        layers.setdefault(placed[name], []).append(got.ref(name))
    return layers


def _collect(files: dict[str, dict[str, LockedWheel]], got: Resolution, targets: Targets) -> None:
    for name, wheels in got.wheels.items():
        kept = [w for w in wheels if _fits(w.name, targets)]
        if not kept:
            raise UsageError(
                f"{got.ref(name)} has no wheel for the asked-for targets",
                where="images/versions.toml",
                expected="a wheel; a source distribution cannot be pinned to its result",
                remedy="ask for a version that has wheels",
            )
        files.setdefault(got.ref(name), {}).update({w.name: w for w in kept})


def _fits(filename: str, targets: Targets) -> bool:
    """Return whether the wheel serves any target (a coarse filter that keeps the lock small)."""
    tags = parse_wheel_filename(filename)[3]
    interpreters = {f"cp{p.replace('.', '')}" for p in targets.python}
    machines = {MACHINE[p] for p in targets.platform}
    return any(
        (tag.interpreter in interpreters or tag.abi == "abi3" or tag.interpreter.startswith("py3"))
        and not tag.abi.endswith("t")
        and (tag.platform == "any" or ("linux" in tag.platform and "musl" not in tag.platform))
        and (tag.platform == "any" or any(tag.platform.endswith(m) for m in machines))
        for tag in tags
    )


def _versions(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {str(canonicalize_name(name)): version for name, version in found}


def _parse(pylock: dict[str, Any], annotated: str) -> Resolution:
    required_by: dict[str, frozenset[str]] = {}
    for line in annotated.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==\S+\s*(?:#\s*via\s+(.*))?$", line):
            via = [v.strip() for v in (match.group(2) or "").split(",")]
            required_by[str(canonicalize_name(match.group(1)))] = frozenset(
                str(canonicalize_name(v)) for v in via if v and not v.startswith("-")
            )
    versions: dict[str, str] = {}
    wheels: dict[str, tuple[LockedWheel, ...]] = {}
    for package in pylock["packages"]:
        name = str(canonicalize_name(package["name"]))
        versions[name] = _versions(annotated)[name]
        wheels[name] = tuple(_locked(wheel) for wheel in package.get("wheels", []))
        if not wheels[name] and "archive" in package:
            wheels[name] = (_locked(package["archive"]),)
    return Resolution(versions, wheels, required_by)


def _locked(wheel: dict[str, Any]) -> LockedWheel:
    from urllib.parse import unquote

    address = str(wheel.get("url") or wheel.get("path"))
    name = wheel.get("name") or unquote(address.rsplit("/", 1)[-1])
    size, digest = wheel.get("size"), wheel.get("hashes", {}).get("sha256")
    local = _local_file(address)
    if local is not None and (size is None or digest is None):
        import hashlib

        with local.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = local.stat().st_size
    return LockedWheel(name=name, sha256=str(digest), size=int(size or 0))


def _local_file(address: str) -> Path | None:
    path = Path(address.removeprefix("file://"))
    return path if path.is_absolute() and path.is_file() else None


def _run_uv(
    arguments: list[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("uv")
    command = [str(program) if program.exists() else "uv", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
        )
    except FileNotFoundError as error:
        raise HostError("uv is missing", remedy="run scripts/bootstrap.sh") from error
    if done.returncode:
        tail = done.stderr.strip()[-1500:]
        if UNREACHABLE.search(tail) and "No solution found" not in tail:
            raise UpstreamError(
                "the package index could not be reached",
                got=tail,
                remedy="check the proxy and index settings that `pip config list` shows",
            )
        message = " ".join(tail.split())
        if match := re.search(
            r"Because (?:only )?([A-Za-z0-9._-]+)\S* has no wheels with", message
        ):
            raise NoWheelError(str(canonicalize_name(match.group(1).split("==")[0])), tail)
        raise UsageError("the requirements cannot be resolved", got=tail)
    return done
