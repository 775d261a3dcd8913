"""Files of the checkout as one archive, small enough for a ConfigMap: what goes into the pods.

An image holds what is to be checked; the checks come from the checkout, as for
`invoke smoke --image`. Standard library only.
"""

from __future__ import annotations

import ast
import base64
import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tdstack.doctor.lines import LOCK, lines_of
from tdstack.errors import HostError, UsageError

MAX_BYTES: Final = 190_000
"""Of an archive. `kubectl apply` keeps what it applied, in base64, in an annotation, and all
annotations of an object may have 262144 bytes; a ConfigMap may have 1 MiB."""
OURS: Final = ("tdstack", "smoke_tests")


@dataclass(frozen=True)
class Packed:
    """A gzipped tar; `sha` is the start of its sha256, for names."""

    data: bytes

    @property
    def sha(self) -> str:
        """Return the first 10 digits of the archive's sha256."""
        return hashlib.sha256(self.data).hexdigest()[:10]

    @property
    def base64(self) -> str:
        """Return it as a ConfigMap's binaryData has it."""
        return base64.b64encode(self.data).decode()


@cache
def smoke_files(root: Path) -> Packed:
    """Return what a pod needs for `python -m tdstack.kubernetes.smoke`.

    Raises: UsageError where it is too large.
    """
    files = closure(root, ["tdstack.kubernetes.smoke"]) | _tree(root, "smoke_tests")
    # pytest's own; no image has pytest.
    wanted = {n for n in files if not n.rpartition("/")[2].startswith(("test_", "conftest"))}
    return pack({name: (root / name).read_bytes() for name in wanted})


@cache
def agent_files(root: Path) -> Packed:
    """Return what a pod needs for the node's agent and the doctor.

    Raises: UsageError where it is too large; HostError where this environment lacks nvidia-ml-py.
    """
    files = closure(root, ["tdstack.kubernetes.agent", "tdstack.doctor.__main__"])
    files |= _tree(root, "tdstack/doctor")
    for folder in {Path(name).parent for name in files}:
        files |= {str(p.relative_to(root)) for p in (root / folder).glob("*.toml")}
    held = {name: (root / name).read_bytes() for name in files}
    held["pynvml.py"] = _module("pynvml", "nvidia-ml-py").read_bytes()
    held[LOCK] = _lines(root)
    return pack(held)


def closure(root: Path, modules: Iterable[str]) -> set[str]:
    """Return the files of these modules and of all in the checkout that they import.

    Raises: HostError for a module that the checkout lacks.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file_of(root, name)
        if path is None:
            raise HostError("the checkout lacks a module", where=str(root), expected=name)
        relative = str(path.relative_to(root))
        if relative in found:
            continue
        found.add(relative)
        waiting += [parent for parent in _parents(name) if _file_of(root, parent)]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for wanted in _imports(path, package):
            # `from a import b`: b is a module, or a name in a.
            while wanted and _file_of(root, wanted) is None:
                wanted = wanted.rpartition(".")[0]
            if wanted:
                waiting.append(wanted)
    return found


def pack(files: Mapping[str, bytes]) -> Packed:
    """Return an archive of files by name; equal files give equal bytes. Pure.

    Raises: UsageError where it is too large.
    """
    written = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=written, mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    data = written.getvalue()
    if len(data) > MAX_BYTES:
        raise UsageError(
            "the files are too large for a ConfigMap that kubectl applies",
            expected=f"at most {MAX_BYTES} bytes",
            got=f"{len(data)} bytes, {len(files)} files",
        )
    return Packed(data)


def _lines(root: Path) -> bytes:
    lines = {cuda: asdict(line) for cuda, line in lines_of(root).items()}
    return json.dumps({"lines": lines}, sort_keys=True).encode()


def _tree(root: Path, folder: str) -> set[str]:
    paths = (path for path in (root / folder).rglob("*") if path.is_file())
    return {str(p.relative_to(root)) for p in paths if "__pycache__" not in p.parts}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _file_of(root: Path, name: str) -> Path | None:
    if name.partition(".")[0] not in OURS:
        return None
    base = root.joinpath(*name.split("."))
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


def _imports(path: Path, package: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = (base if node.level else []) + ([node.module] if node.module else [])
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def _module(name: str, distribution: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise HostError(
            f"{distribution} is not installed here, and pods need it",
            remedy="use the checkout's own Python: .venv/bin/python scripts/kubernetes/render ...",
        )
    return Path(found.origin)
