"""Reading and writing versions.lock."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pydantic import ValidationError

from tdstack.errors import IntegrityError, UsageError
from tdstack.lock.model import SCHEMA, Lock, entry_errors

LOCK_FILE = Path("versions.lock")


def dump_lock(lock: Lock) -> str:
    """Return the lock as text; equal locks give equal bytes."""
    data = lock.model_dump(mode="json", by_alias=True)
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def parse_lock(text: str, where: str = str(LOCK_FILE)) -> Lock:
    """Parse the text of a lock.

    Raises: IntegrityError for text that is truncated or breaks the schema, with the path of
    the bad entry; UsageError for a schema version that this tdstack does not know.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise IntegrityError(
            f"{where} is not whole: {error.msg}",
            where=f"{where}, line {error.lineno}, column {error.colno}",
            expected="a complete JSON document",
            remedy="restore it from version control, or run `invoke lock`",
        ) from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{where} is no lock", got=str(error)[:200], remedy="restore it from version control"
        ) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{where} has schema {schema!r}, which this tdstack cannot read",
            where=f"{where}: schema",
            expected=str(SCHEMA),
            remedy="use the tdstack that wrote it, or run `invoke lock` to write it anew",
        )
    try:
        return Lock.model_validate(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{where} does not fit its schema",
            where=entry_errors(error),
            remedy="restore it from version control, or run `invoke lock`",
        ) from error


def load_lock(root: Path) -> tuple[Lock, str]:
    """Read versions.lock under `root`.

    Returns: the lock, and the sha256 of the file.
    Raises: UsageError when there is none; the errors of `parse_lock`.
    """
    path = root / LOCK_FILE
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(
            f"cannot read {LOCK_FILE}", where=str(path), got=str(error), remedy="run `invoke lock`"
        ) from error
    except UnicodeDecodeError as error:
        raise IntegrityError(
            f"{LOCK_FILE} is not text",
            where=f"{path}, byte {error.start}",
            remedy="restore it from version control, or run `invoke lock`",
        ) from error
    return parse_lock(text), hashlib.sha256(text.encode()).hexdigest()


def write_lock(root: Path, lock: Lock) -> bool:
    """Write versions.lock in one step; return whether its bytes changed."""
    path = root / LOCK_FILE
    text = dump_lock(lock)
    if path.exists() and path.read_text() == text:
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
    return True
