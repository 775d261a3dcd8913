"""`invoke lock`: bring versions.lock in line with images/versions.toml."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tdstack.errors import CheckFailed, TdstackError
from tdstack.lock.asked import Asked, AskedBase, load_asked
from tdstack.lock.io import load_lock
from tdstack.lock.model import (
    SCHEMA,
    Lock,
    LockedDeb,
    LockedFile,
    LockedForkWheel,
    LockedRootfs,
    LockedTritonDistributed,
    Platform,
)
from tdstack.lock.resolve import resolve_closures, resolve_lines, uv_version
from tdstack.pipconf import pip_config
from tdstack.rootfs import build_rootfs, installed_packages, resolve_debs, tool_versions
from tdstack.wheelhouse.store import sha256_of

DebFetcher = Callable[[Iterable[LockedDeb]], dict[str, Path]]
PARTS = ("python", "base")


def check_lock(root: Path) -> None:
    """Compare versions.lock with images/versions.toml; reads two files and nothing else.

    Raises: CheckFailed when the lock answers another question than the one asked.
    """
    asked, digest = load_asked(root)
    lock, _ = load_lock(root)
    if lock.asked != digest:
        raise CheckFailed(
            "versions.lock was not made from images/versions.toml as it stands",
            where="versions.lock: asked",
            expected=digest,
            got=lock.asked,
            remedy="run `invoke lock` and commit the result",
        )
    missing = sorted(set(asked.lines) ^ set(lock.lines))
    if missing:
        raise CheckFailed("versions.lock lacks CUDA lines", where=", ".join(missing))


def update_lock(
    root: Path, *, upgrade: Iterable[str], fetch_debs: DebFetcher, say: Callable[[str], None]
) -> Lock:
    """Resolve what is asked for, and return the new lock.

    Pins of the present lock stay unless what is asked for forbids them or `upgrade` names
    their part (`python`, `base`). Without either, the lock that is there is the answer, and
    nothing outside this host is asked.
    Raises: UsageError, UpstreamError, HostError as the resolvers do.
    """
    asked, digest = load_asked(root)
    moved = set(upgrade)
    try:
        old, _ = load_lock(root)
    except TdstackError:
        old = None
    if old and old.asked == digest and not moved:
        return old
    keep = {} if old is None or "python" in moved else _pins(old)
    pip = pip_config()
    say(f"resolving {len(asked.sets)} Python sets with {uv_version()}")
    closures, files = resolve_closures(asked, keep, pip)
    tools = [] if "python" in moved or old is None else _toolkit_pins(old)
    lines, tool_files = resolve_lines(asked, tools, pip)
    for ref, found in tool_files.items():
        known = {f.name: f for f in files.get(ref, [])} | {f.name: f for f in found}
        files[ref] = [known[name] for name in sorted(known)]
    known_rootfs = old.rootfs if old and "base" not in moved else []
    rootfs: list[LockedRootfs] = []
    for base in asked.bases:
        for platform in base.platform:
            same = [r for r in known_rootfs if r.platform == platform and _same_base(r, base)]
            if not same:
                say(f"resolving the {base.suite} root file system for {platform}")
            rootfs += same[:1] or [_lock_rootfs(base, platform, fetch_debs)]
    return Lock(
        schema=SCHEMA,
        asked=digest,
        resolver=uv_version(),
        lines=lines,
        closures=closures,
        packages=files,
        rootfs=rootfs,
        triton_distributed=_triton_distributed(asked, old),
    )


def _triton_distributed(asked: Asked, old: Lock | None) -> LockedTritonDistributed:
    wheels: list[LockedForkWheel] = old.triton_distributed.wheels if old else []
    return LockedTritonDistributed(**asked.triton_distributed.model_dump(), wheels=wheels)


def _pins(lock: Lock) -> dict[tuple[str, str, str, str], list[str]]:
    return {
        (c.set, c.torch, c.python, c.platform): [r for refs in c.layers.values() for r in refs]
        for c in lock.closures
    }


def _toolkit_pins(lock: Lock) -> list[str]:
    return [ref for line in lock.lines.values() for refs in line.toolkit.values() for ref in refs]


def _same_base(locked: LockedRootfs, asked: AskedBase) -> bool:
    return (locked.suite, locked.python, locked.glibc, locked.asked) == (
        asked.suite,
        asked.python,
        asked.glibc,
        _base_wishes(asked),
    )


def _base_wishes(asked: AskedBase) -> list[str]:
    return [*sorted(asked.packages), *(f"pocket:{p}" for p in sorted(asked.pockets))]


def _lock_rootfs(asked: AskedBase, platform: Platform, fetch_debs: DebFetcher) -> LockedRootfs:
    debs = resolve_debs(asked.suite, platform, asked.packages, asked.pockets)
    with tempfile.TemporaryDirectory(prefix="tdstack-rootfs-") as folder:
        tar = Path(folder, "rootfs.tar")
        build_rootfs(asked.suite, platform, asked.packages, fetch_debs(debs), tar)
        # A mirror also answers with what only installs the others, such as apt. The lock must
        # not name what no image holds.
        there = installed_packages(tar)
        debs = [deb for deb in debs if deb.package in there]
        build_rootfs(asked.suite, platform, asked.packages, fetch_debs(debs), tar)
        made = LockedFile(
            name=f"rootfs-{asked.suite}.tar", sha256=sha256_of(tar), size=tar.stat().st_size
        )
    return LockedRootfs(
        platform=platform,
        suite=asked.suite,
        python=asked.python,
        glibc=asked.glibc,
        asked=_base_wishes(asked),
        packages=debs,
        tar=made,
        made_with=tool_versions(),
    )
