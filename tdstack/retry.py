"""Trying again over a network: what is worth another try, and how long to wait before it."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

import requests

TRIES = 6
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
# A server may ask for more patience than that; then the verb ends and says so.
LONGEST_ASKED_S = 60.0

# For a connection, and for a server that says nothing.
CONNECT_LIMIT_S, SILENCE_LIMIT_S = 20, 60

BUSY = frozenset({408, 429, 500, 502, 503, 504})
BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


class TransientError(Exception):
    """Another try may succeed; `after_s` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class Backoff:
    """Counts tries that failed in a row; each wait is about twice the one before.

    The waits are random within a half, so that many clients do not come back in one moment.
    """

    def __init__(self, tries: int = TRIES) -> None:
        self._tries = tries
        self.failed = 0

    def again(self, after_s: float = 0.0) -> bool:
        """Wait and return True, or return False where no further try is left."""
        self.failed += 1
        if self.failed >= self._tries or after_s > LONGEST_ASKED_S:
            return False
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.failed - 1))
        time.sleep(max(after_s, wait * random.uniform(0.5, 1.0)))
        return True

    def progressed(self) -> None:
        """Forget the failures: what came since shows that the server is there."""
        self.failed = 0


def asked_wait_s(header: str) -> float:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), else 0."""
    text = header.strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
