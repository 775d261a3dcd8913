"""Wheels of Triton for tests: small ones, and forks made from the real stock release."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tdstack.fork.model import ForkWheel
from tdstack.fork.zipcopy import WheelWriter
from tdstack.lock.model import Lock, LockedFile, LockedForkWheel
from tdstack.verify.triton.fork import FINGERPRINT, LIBRARY

TAG = "cp311-cp311-linux_x86_64"
BACKENDS = "[console_scripts]\nproton = triton.profiler.proton:main\n\n[triton.backends]\n"
STOCK_BACKENDS = BACKENDS + "amd = triton.backends.amd\nnvidia = triton.backends.nvidia\n"
FORK_BACKENDS = BACKENDS + "nvidia = triton.backends.nvidia\n"
# Left out of the slim release: what neither import nor compilation to PTX needs.
HEAVY = (
    "triton/backends/amd/lib/",
    "triton/backends/nvidia/bin/",
    "triton/backends/nvidia/lib/cupti/",
    "triton/instrumentation/",
    "triton/_C/libproton.so",
    "triton/FileCheck",
)


# The version of the oldest symbols on x86-64.
OLDEST = b"GLIBC_2.2.5\0"


@lru_cache(maxsize=1)
def elf() -> bytes:
    """A real, small library that needs glibc: one of this Python's own extensions."""
    folder = Path(sysconfig.get_path("stdlib"), "lib-dynload")
    every = (path.read_bytes() for path in folder.glob("*.so"))
    return min((data for data in every if OLDEST in data), key=len)


def library(fork: bool = True, python: str = "3.11", glibc: str = "") -> bytes:
    """libtriton.so in small. `glibc` replaces the newest version that it needs."""
    data = elf()
    if glibc:
        data = _needing(data, glibc)
    told = f"\0module was compiled for Python %s\0{python}\0".encode()
    return data + told + (FINGERPRINT if fork else b"")


def _needing(data: bytes, glibc: str) -> bytes:
    return data.replace(OLDEST, f"GLIBC_{glibc}\0".encode().ljust(len(OLDEST), b"\0"))


STOCK_FILES: Mapping[str, bytes | str] = {
    "triton/__init__.py": "__version__ = '3.4.0'\njit = None\n",
    "triton/language/__init__.py": "name = 'stock'\n",
    "triton/backends/__init__.py": "",
    "triton/backends/amd/__init__.py": "",
    "triton/backends/nvidia/__init__.py": "",
    "triton/profiler/proton.py": "def main(): pass\n",
    LIBRARY: library(fork=False),
}
FORK_FILES: Mapping[str, bytes | str] = {
    "triton/__init__.py": "__version__ = '3.4.0'\njit = None\n",
    "triton/language/__init__.py": "name = 'fork'\n",
    "triton/backends/__init__.py": "",
    "triton/backends/nvidia/__init__.py": "",
    "triton/profiler/proton.py": "def main(): pass\n",
    "triton_dist/__init__.py": "",
    "triton_dist/language/__init__.py": "from . import core\n",
    "triton_dist/language/core.py": "",
    "triton_dist/layers/__init__.py": "",
    "triton_dist/layers/nvidia/__init__.py": "from triton_dist.kernels.nvidia import gemm\n",
    "triton_dist/kernels/__init__.py": "",
    "triton_dist/kernels/nvidia/__init__.py": "",
    "triton_dist/kernels/nvidia/gemm.py": "",
    LIBRARY: library(),
}
# As the index's triton-dist 0.0.0: Python files alone, and among them triton's own.
TRAP_FILES: Mapping[str, bytes | str] = {
    "triton/__init__.py": "__version__ = '0.0.0'\n",
    "triton/language/__init__.py": "name = 'trap'\n",
    "triton_dist/__init__.py": "",
}


def a_fork(
    tag: str = TAG,
    version: str = "3.4.0+dist.0a",
    *,
    python: str = "",
    glibc: str = "",
    machine: str = "",
) -> ForkWheel:
    """A fork as the store would hold it, without its files."""
    zeros: dict[str, Any] = {"sha256": "0" * 64, "size": 1}
    interpreter = tag[:5]
    return ForkWheel(
        file=LockedFile(name=f"triton-{version}-{tag}.whl", **zeros),
        version=version,
        alias=LockedFile(name=f"triton_dist-{version}-py3-none-any.whl", **zeros),
        source=LockedForkWheel(
            name=f"triton_dist-{version.partition('+')[0]}-{tag}.whl",
            python=python or f"3.{interpreter[3:]}",
            glibc=glibc,
            **zeros,
        ),
        machine=machine,
    )


def real_stock(lock: Lock) -> Path:
    """The stock release as the lock names it, fetched once into the store."""
    from tdstack.stack import best_wheel
    from tdstack.workspace import Workspace

    files = lock.packages["triton==3.4.0"]
    file = best_wheel("triton==3.4.0", files, "3.11", "linux/amd64", "2.36")
    workspace = Workspace.here()
    workspace.fetch([file])
    named = workspace.store.work() / "tests" / file.name
    named.parent.mkdir(exist_ok=True)
    if not named.exists():
        # Resolved: the store may be reached through a folder that goes with the test. Renamed:
        # another process may do the same, and what was there may lead nowhere.
        beside = named.with_name(f".{os.getpid()}-{named.name}")
        beside.symlink_to(workspace.store.path(file).resolve())
        beside.replace(named)
    return named


def slim_stock(lock: Lock, folder: Path) -> Path:
    """The stock release without what imports do not need, its library stripped: 50 MB."""
    real = real_stock(lock)
    out = folder / f"triton-3.4.0-{TAG}.whl"
    if not out.exists():
        stripped = folder / "libtriton.so"
        with zipfile.ZipFile(real) as archive:
            stripped.write_bytes(archive.read(LIBRARY))
            subprocess.run(["strip", str(stripped)], check=True)
            rewrite(real, out, {LIBRARY: stripped.read_bytes()}, leave_out=HEAVY)
    return out


def rewrite(
    wheel: Path,
    out: Path,
    changes: Mapping[str, bytes] = {},
    leave_out: Iterable[str] = (),
    name: str = "",
) -> Path:
    """Write a wheel with some files changed, added or left out, and a RECORD that is right."""
    skipped = tuple(leave_out)
    with zipfile.ZipFile(wheel) as source:
        old = next(n.split("/")[0] for n in source.namelist() if n.endswith(".dist-info/RECORD"))
        stem = "-".join(out.name.split("-")[:2])
        info = f"{stem}.dist-info"
        with WheelWriter(out, info) as target:
            for member in source.infolist():
                if member.filename == f"{old}/RECORD" or member.is_dir():
                    continue
                if member.filename.startswith(skipped) or member.filename in changes:
                    continue
                to = member.filename.replace(f"{old}/", f"{info}/")
                if name and member.filename == f"{old}/METADATA":
                    text = source.read(member).replace(
                        b"Name: triton\n", f"Name: {name}\n".encode()
                    )
                    target.add(to, text)
                else:
                    target.copy(source, member, to, "")
            for path, data in changes.items():
                target.add(path, data)
    return out


def real_fork(stock: Path, out: Path, changes: Mapping[str, bytes] = {}) -> Path:
    """A fork made from a stock wheel: the fingerprint in its library, and triton_dist beside it."""
    with zipfile.ZipFile(stock) as archive:
        data = archive.read(LIBRARY)
    own = {n: t for n, t in FORK_FILES.items() if n.startswith("triton_dist/")}
    files = {n: t.encode() if isinstance(t, str) else t for n, t in own.items()}
    files[LIBRARY] = data + FINGERPRINT
    return rewrite(stock, out, {**files, **changes}, name="triton-dist")
