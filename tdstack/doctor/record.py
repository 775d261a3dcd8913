"""A host's facts in a file, and back."""

from __future__ import annotations

import json
import os
import pwd
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from tdstack.doctor.facts import SCHEMA, Facts
from tdstack.doctor.load import dump, load, major, readable
from tdstack.doctor.scrub import Names, scrub
from tdstack.errors import UsageError

MOST = 64 << 20


def write_record(facts: Facts, path: Path, names: Names) -> None:
    """Write facts, scrubbed, whole or not at all. Raises: OSError."""
    text = json.dumps(scrub(dump(facts), names), indent=1, sort_keys=True, ensure_ascii=False)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def read_record(path: Path) -> Facts:
    """Return the facts in a file.

    Raises: UsageError for what is no record, or one of a newer major version.
    """
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MOST))
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"no JSON: {error}") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise _refused(path, error.strerror or str(error)) from error
    if not isinstance(data, dict) or "schema" not in data:
        raise _refused(path, "JSON without a schema")
    if not readable(data):
        own, theirs = SCHEMA[0], major(data)
        raise UsageError(
            "the record is of another version of the doctor",
            where=f"--facts {path}",
            expected=f"schema {own}.x",
            got=f"schema {data['schema']!r}"[:60],
            remedy="use the tdstack that recorded it" if theirs else "record the host again",
        )
    return load(data)


def host_name() -> str:
    """Return this host's name."""
    return socket.gethostname()


def names_here() -> Names:
    """Return this host's names, its users' and their homes; asks no server."""
    host = host_name()
    hosts = {host, host.partition(".")[0]}
    with suppress(OSError, UnicodeDecodeError):
        hosts.add(Path("/etc/hostname").read_text("utf-8").strip())
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    homes = {os.environ.get("HOME", "")}
    with suppress(KeyError):
        own = pwd.getpwuid(os.getuid())
        users.add(own.pw_name)
        homes.add(own.pw_dir)
    with suppress(OSError, UnicodeDecodeError):
        # Read as a file: pwd would ask a directory server for everybody.
        for line in Path("/etc/passwd").read_text("utf-8").splitlines():
            words = line.split(":")
            if len(words) > 5 and words[2].isdigit() and 1000 <= int(words[2]) < 65534:
                users.add(words[0])
                homes.add(words[5])
    return Names(*(frozenset(filter(None, found)) for found in (hosts, users, homes)))


def _refused(path: Path, got: str) -> UsageError:
    return UsageError(
        "the file holds no recorded host",
        where=f"--facts {path}",
        expected="what --record wrote",
        got=got[:200],
        remedy="record the host with --record FILE",
    )
