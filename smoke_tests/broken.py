"""Environments and bundles that are broken on purpose: small, made of nothing but this Python."""

from __future__ import annotations

import base64
import hashlib
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from tdstack.verify.nvshmem.facts import DEVICE, FOLDER, HOST
from tdstack.verify.triton.fork import FINGERPRINT, LIBRARY

NVSHMEM_HOST = str(FOLDER / f"{HOST}.3")
NVSHMEM_DEVICE = str(FOLDER / DEVICE)


def environment(prefix: Path) -> Path:
    """Make an empty environment; return its folder of packages."""
    venv.EnvBuilder(symlinks=True).create(prefix)
    return prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def install(site: Path, name: str, version: str, files: Mapping[str, bytes]) -> None:
    """Put a distribution into an environment, as an installer would: over what is there."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    rows = []
    for path, data in {**files, f"{info}/METADATA": metadata}.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    record = site / info / "RECORD"
    record.write_text("\n".join([*rows, f"{info}/RECORD,,", ""]))


def nvshmem(version: str) -> dict[str, bytes]:
    """Return the files of an NVSHMEM wheel, as far as looking at them goes."""
    said = f"NVSHMEM v{version}".encode()
    return {NVSHMEM_HOST: b"\x7fELF" + said, NVSHMEM_DEVICE: b"BC\xc0\xde" + said}


def triton(*, fork: bool) -> dict[str, bytes]:
    """Return the files of a Triton wheel, as far as looking at them goes."""
    kind = b"fork" if fork else b"stock"
    files = {
        "triton/__init__.py": b"__version__ = '3.4.0'\njit = None\n",
        "triton/language/__init__.py": b"name = '" + kind + b"'\n",
        "triton/backends/nvidia/__init__.py": b"",
        LIBRARY: b"\x7fELF" + (FINGERPRINT if fork else b""),
    }
    return files | ({"triton_dist/__init__.py": b""} if fork else {})


def flip_a_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
