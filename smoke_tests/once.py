"""Some checks on virtual ranks in this very process, for debuggers and sanitizers:

compute-sanitizer --tool memcheck python -m smoke_tests.once --ranks 4 integers_are_exact
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from smoke_tests.checks.registry import load
from smoke_tests.rank_process import connect_ranks

TIME_LIMIT_S = 300.0
"""For a rank to wait for a peer: a sanitizer slows kernels down."""


def main() -> int:
    """Run the named checks with small sizes; a failure is a traceback."""
    checks = {name: check for name, check in load().items() if "virtual" in check.kinds}
    parser = argparse.ArgumentParser(prog="python -m smoke_tests.once", description=__doc__)
    parser.add_argument("--ranks", type=int, default=4, choices=(1, 2, 4, 8))
    parser.add_argument("--full", action="store_true", help="sizes of models, not small ones")
    parser.add_argument("check", nargs="+", choices=checks)
    given = parser.parse_args()
    ranks = connect_ranks("virtual", given.ranks, 0, TIME_LIMIT_S, folder="")
    ranks = replace(ranks, small=not given.full)
    for name in given.check:
        begin = time.monotonic()
        detail = checks[name].body(ranks) or ""
        print(f"{name}: passed, {time.monotonic() - begin:.1f} s {detail}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
