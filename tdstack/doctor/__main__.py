"""`python -m tdstack.doctor`: the verb without Invoke, for prologs and for bare machines.

Recording needs this checkout and Python alone; judging needs what .venv holds.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tdstack.doctor.verb import Options, doctor
from tdstack.errors import ExitCode, HostError, TdstackError

INTERRUPTED = 130
LIMIT = "seconds for each question to the host (default: 15 to 90); all takes a little longer"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that `invoke doctor` has too."""
    made = argparse.ArgumentParser(prog="python -m tdstack.doctor", description=__doc__)
    made.add_argument("--cuda", default="", help="judge for this CUDA line, such as 12.4")
    made.add_argument("--record", default="", metavar="FILE", help="keep this host's facts")
    made.add_argument("--facts", default="", metavar="FILE", help="judge a recorded host instead")
    made.add_argument("--prefix", default="", metavar="DIR", help="also look at this prefix")
    made.add_argument("--limit", default=0.0, type=float, metavar="SECONDS", help=LIMIT)
    made.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    made.add_argument("--dry", action="store_true", help="no side effects: write no record")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the doctor; return its exit code (docs/exit-codes.md)."""
    given = parser().parse_args(arguments)
    options = Options(given.cuda, given.record, given.facts, given.prefix, given.limit, given.dry)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        return doctor(options, as_json=given.json)
    except TdstackError as error:
        return _ended(error, as_json=given.json)
    except OSError as error:
        told = HostError(
            "a file cannot be read or written",
            where=str(error.filename or ""),
            got=error.strerror or str(error),
        )
        return _ended(told, as_json=given.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def interrupt(_number: int, _frame: object) -> NoReturn:
    """Make an end from outside what a Ctrl-C is, so that no probe is left running."""
    raise KeyboardInterrupt


def _ended(error: TdstackError, *, as_json: bool) -> int:
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(error.as_dict(), indent=2, sort_keys=True))
    return int(ExitCode(error.code))


if __name__ == "__main__":
    sys.exit(main())
