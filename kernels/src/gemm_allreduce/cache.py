"""Keeps compiled cubins by the key of everything that decides their bytes.

A file per cubin, ``<first two digits>/<key>``: a line of JSON, then the cubin. Files are written
in one step; one that is cut off or damaged counts as absent, so several processes may share a
folder and any of them may be stopped.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from .compiler import CompileError, Cubin, Job, make_cubin


@dataclass(frozen=True)
class Cache:
    """A folder of cubins; None keeps nothing."""

    folder: Path | None

    def get(self, job: Job) -> Cubin | None:
        """Return the cubin of a job, or None if it is absent or damaged."""
        if self.folder is None:
            return None
        try:
            head, _, data = self._path(self.folder, job).read_bytes().partition(b"\n")
            entry = json.loads(head)
            if entry["sha256"] != hashlib.sha256(data).hexdigest() or entry["key"] != job.key:
                return None
            return make_cubin(job, data, int(entry["shared"]))
        except (OSError, ValueError, KeyError, TypeError, CompileError):
            return None

    def put(self, job: Job, cubin: Cubin) -> None:
        """Keep a cubin.

        Raises:
            OSError: the folder can't be written.
        """
        if self.folder is None:
            return
        record = cubin.record
        entry = {"key": job.key, "sha256": record.sha256, "shared": record.shared}
        head = json.dumps(entry, sort_keys=True).encode()
        replace_file(self._path(self.folder, job), head + b"\n" + cubin.data)

    @staticmethod
    def _path(folder: Path, job: Job) -> Path:
        return folder / job.key[:2] / job.key


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step, with its folder.

    Raises:
        OSError: it can't be written; the file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a process's number: containers that share a folder count from 1 each.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
