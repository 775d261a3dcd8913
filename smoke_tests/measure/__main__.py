"""`python -m smoke_tests.measure`: see cli.py; `python -m smoke_tests.measure tune`: tune.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
for folder in (ROOT, ROOT / "kernels" / "src"):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if __name__ == "__main__":
    if sys.argv[1:2] == ["tune"]:
        from smoke_tests.measure.tune import main as tune

        result = tune(sys.argv[2:])
    else:
        from smoke_tests.measure.cli import main

        result = main()
    if "RANK" in os.environ:
        # Not through the interpreter's shutdown: exit handlers of NCCL and NVSHMEM wait for peers.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result)
    sys.exit(result)
