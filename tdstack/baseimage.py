"""The bottom of an image: our own root file system, or an image of somebody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tdstack.assemble.tar import Blob
from tdstack.engines.base import Engine, RunRequest
from tdstack.errors import HostError, IntegrityError
from tdstack.lock.model import LockedRootfs
from tdstack.rootfs import build_rootfs, tool_versions
from tdstack.stack import BaseFacts, Stack
from tdstack.wheelhouse.store import Store, sha256_of

# What an image must offer, asked in plain sh because that is all we know of it.
PROBE = """
command -v gcc >/dev/null || { echo "missing: gcc"; exit 1; }
test "$1" || { getconf GNU_LIBC_VERSION | sed "s/glibc //"; exit; }
p=$(command -v "python$1") || { echo "missing: python$1"; exit 1; }
h=$("$p" -c 'import sysconfig; print(sysconfig.get_path("include"))')
test -e "$h/Python.h" || { echo "missing: Python.h"; exit 1; }
# A virtual environment's link would point at itself once ours lies over it.
"$p" -c 'import os, sys; print(os.path.realpath(sys.executable))'
"$p" -c 'import os; print(os.confstr("CS_GNU_LIBC_VERSION").split()[-1])'
"""


def base_blob(stack: Stack, store: Store, layout: Path, say: Callable[[str], None]) -> Blob:
    """Return the root file system's tar as a blob of `layout`, building it when needed.

    Raises: IntegrityError when the same tools give other bytes than the lock records.
    """
    rootfs = stack.rootfs
    assert rootfs is not None
    with store.locked(rootfs.tar.sha256):
        if store.has(rootfs.tar):
            path = store.verify(rootfs.tar)
            return _into(layout, path, rootfs.tar.sha256)
        say(f"  building the {rootfs.suite} root file system from {len(rootfs.packages)} packages")
        made = store.work() / f"rootfs-{os.getpid()}.tar"
        try:
            asked = [a for a in rootfs.asked if not a.startswith("pocket:")]
            debs = {deb.name: store.verify(deb) for deb in rootfs.packages}
            build_rootfs(rootfs.suite, stack.platform, asked, debs, made)
            got = sha256_of(made)
            if got == rootfs.tar.sha256:
                made.replace(store.path(rootfs.tar))
                return _into(layout, store.path(rootfs.tar), got)
            _differs(rootfs, got, say)
            return _into(layout, made, got)
        finally:
            made.unlink(missing_ok=True)


def probe_base(engine: Engine, ref: str, python: str) -> BaseFacts:
    """Look for Python `python` in an image, and for what else every layer needs.

    An empty `python`: the image brings none, and a stand-alone one takes its place.
    Raises: HostError naming what the image lacks.
    """
    done = engine.run(RunRequest(ref, ["/bin/sh", "-c", PROBE, "probe", python]))
    if done.status:
        raise HostError(
            f"the base image {ref} lacks what every layer needs",
            where="--base",
            expected=f"python{python} with headers, and gcc" if python else "gcc and getconf",
            got=done.stdout.strip() or done.stderr[-300:],
            remedy="add the packages to that image, choose its Python with --python, or use "
            "--base rootfs",
        )
    *interpreter, glibc = done.stdout.strip().splitlines()
    return BaseFacts(interpreter[-1] if interpreter else "", glibc)


def _differs(rootfs: LockedRootfs, got: str, say: Callable[[str], None]) -> None:
    here = tool_versions()
    if here == rootfs.made_with:
        raise IntegrityError(
            "the root file system is not the one that the lock records",
            where="versions.lock: rootfs",
            expected=f"sha256 {rootfs.tar.sha256}",
            got=f"sha256 {got}, from the same packages and tools",
            remedy="report it; to go on, record this host's result with "
            "`invoke lock --upgrade --only base`",
        )
    say(
        f"  note: this host's tools {here} differ from the lock's {rootfs.made_with}; the root "
        "file system holds the same packages in other bytes, so digests will differ"
    )


def _into(layout: Path, path: Path, sha256: str) -> Blob:
    target = layout / "blobs" / "sha256" / sha256
    try:
        os.link(path, target)
    except OSError:
        target.write_bytes(path.read_bytes())
    return Blob(sha256, target.stat().st_size)
