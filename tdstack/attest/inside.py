"""What an image says of itself in its own files: its slice of the lock, its cubins' manifest.

The files are read out of the bytes that the image's digest stands for, not out of what is
attached to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from tdstack.attest.contents import Kernels
from tdstack.attest.lockslice import LockSlice, parse_slice
from tdstack.engines.base import Engine, RunRequest
from tdstack.errors import CheckFailed, IntegrityError
from tdstack.plan import PREFIX
from tdstack.tags import line_tag

MANIFEST = f"{PREFIX}/manifest.json"
_BUNDLE = re.compile(
    rf"{PREFIX}/lib/python3\.\d+/site-packages/gemm_allreduce_cubins/\w+/manifest\.json"
)
_RECORD = re.compile(
    rf"{PREFIX}/lib/python3\.\d+/site-packages/gemm_allreduce-[^/-]+\.dist-info/RECORD"
)
# The largest of these files has some 700 entries of 1 kB.
LARGEST = 16 << 20
# Runs in the image: prints the files as one JSON object, path -> base64.
READER = f"""
import base64, glob, json
found = ["/{MANIFEST}"]
for pattern in ("gemm_allreduce_cubins/*/manifest.json", "gemm_allreduce-*.dist-info/RECORD"):
    found += glob.glob("/{PREFIX}/lib/python3.*/site-packages/" + pattern)
print(json.dumps({{p[1:]: base64.b64encode(open(p, "rb").read()).decode() for p in found}}))
"""


@dataclass(frozen=True)
class Inside:
    """An image's own slice, and the kernels that are really there."""

    slice: LockSlice
    kernels: Kernels


def read_tar(stream: IO[bytes], where: str) -> dict[str, bytes]:
    """Return the files of interest in a layer's tar, path -> bytes; read to the end.

    Raises: IntegrityError for what is no tar, or a file of unlikely size.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not member.isfile() or not _wanted(member.name):
                    continue
                if member.size > LARGEST:
                    raise IntegrityError(
                        "a file in the image is too large",
                        where=f"{where}: {member.name}",
                        expected=f"at most {LARGEST} bytes",
                        got=str(member.size),
                    )
                content = archive.extractfile(member)
                found[member.name] = content.read() if content else b""
    except tarfile.TarError as error:
        raise IntegrityError("a layer is no tar", where=where, got=str(error)) from error
    return found


def read_engine(engine: Engine, ref: str) -> Inside:
    """Return what an image in the engine says of itself.

    Raises: CheckFailed for an image that is not one of tdstack; IntegrityError for files that
    cannot be read; the errors of Engine.run.
    """
    command = [f"/{PREFIX}/bin/python", "-I", "-c", READER]
    done = engine.run(RunRequest(ref, command, user="12345:0"))
    try:
        found: Mapping[str, str] = json.loads(done.stdout)
        files = {path: base64.b64decode(text) for path, text in found.items()}
    except (ValueError, AttributeError) as error:
        raise CheckFailed(
            "this is no image of tdstack",
            where=ref,
            expected=f"/{MANIFEST} in it",
            got=done.stderr.strip()[-300:],
        ) from error
    return inside_of(files, ref)


def inside_of(files: Mapping[str, bytes], where: str) -> Inside:
    """Return what the files say. Pure.

    Raises: IntegrityError when one is missing, or cannot be read.
    """
    if MANIFEST not in files:
        raise _lacking(MANIFEST, where)
    slice_ = parse_slice(files[MANIFEST], f"{where}: {MANIFEST}")
    folder = f"/{line_tag(slice_.cuda)}/manifest.json"
    bundles = [b for path, b in files.items() if _BUNDLE.fullmatch(path) and path.endswith(folder)]
    records = [r for path, r in files.items() if _RECORD.fullmatch(path)]
    if len(bundles) != 1 or len(records) != 1:
        raise _lacking("one manifest of cubins and one RECORD of gemm-allreduce", where)
    return Inside(slice_, _kernels(bundles[0], records[0], where))


def _kernels(bundle: bytes, record: bytes, where: str) -> Kernels:
    try:
        data: dict[str, Any] = json.loads(bundle)
        archs = [str(c["arch"]) for c in data["cubins"]]
        ptxas = sorted({str(c["ptxas"]) for c in data["cubins"]})
        version, triton = str(data["version"]), str(data["triton"]["distribution"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            "the manifest of the cubins cannot be read",
            where=where,
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    counts = {arch: archs.count(arch) for arch in dict.fromkeys(archs)}
    hashes = _sha256([bundle, record])
    return Kernels(version, counts, triton, ", ".join(ptxas), hashes[0], hashes[1])


def _sha256(contents: Iterable[bytes]) -> list[str]:
    return [hashlib.sha256(content).hexdigest() for content in contents]


def _wanted(path: str) -> bool:
    return path == MANIFEST or bool(_BUNDLE.fullmatch(path) or _RECORD.fullmatch(path))


def _lacking(what: str, where: str) -> IntegrityError:
    return IntegrityError("the image lacks what it says of itself", where=where, expected=what)
