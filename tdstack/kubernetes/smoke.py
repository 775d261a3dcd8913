"""What a pod of the smoke Jobs runs: the launcher, and then the records on stdout.

A pod's files go with it, so its log is the report: `kubectl logs` gives records as lines of JSON
among the words of the ranks. Standard library only, and the image's own torch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from smoke_tests import launch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this pod's ranks; return the launcher's exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_known_args(arguments)[0].out
    code = launch.main(arguments)
    records = out / launch.FILE
    if records.exists():  # the first pod's alone, unless it was lost
        with records.open() as stream:
            shutil.copyfileobj(stream, sys.stdout)
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
