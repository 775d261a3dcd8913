"""The errors that end a verb, and the exit code that each one stands for.

Every error carries four things that a reader needs: what happened, where, what was
expected and what to do. The exit codes are the contract with scripts that call us.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb (documented in docs/exit-codes.md)."""

    DONE = 0
    CHECK_FAILED = 1
    USAGE = 2
    HOST = 3
    INTEGRITY = 4
    UPSTREAM = 5
    TIME_LIMIT = 6


class TdstackError(Exception):
    """Base of all errors that are part of the product; never raised itself."""

    code: ExitCode = ExitCode.CHECK_FAILED

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        remedy: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.remedy = remedy
        self.details = details

    def __str__(self) -> str:
        rows = [("where", self.where), ("expected", self.expected)]
        rows += [("got", self.got), ("remedy", self.remedy)]
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in rows if text)])

    def as_dict(self) -> dict[str, object]:
        """Return the error as JSON-ready data; `details` is what the verb had found by then."""
        data: dict[str, object] = {
            "error": type(self).__name__,
            "exit_code": int(self.code),
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
        }
        return data | ({"details": dict(self.details)} if self.details is not None else {})


class CheckFailed(TdstackError):
    """A check ran and its answer was no."""

    code = ExitCode.CHECK_FAILED


class UsageError(TdstackError):
    """What was asked for does not exist or contradicts itself."""

    code = ExitCode.USAGE


class HostError(TdstackError):
    """Something is missing on this host: a program, a right, disk space."""

    code = ExitCode.HOST


class IntegrityError(TdstackError):
    """Bytes are not those that the lock names."""

    code = ExitCode.INTEGRITY


class UpstreamError(TdstackError):
    """An index, a mirror or a registry could not be reached or lacks a file."""

    code = ExitCode.UPSTREAM


class TimeLimitError(TdstackError):
    """A step ran past its time limit."""

    code = ExitCode.TIME_LIMIT
