"""One rank: `python rank.py RANK PORT FOLDER`. Prints a line of JSON for each case."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path


def main() -> None:
    import cases
    import tiny

    rank, port, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.getLogger("sglang").setLevel(logging.ERROR)
    tiny.start(tiny.server_args(folder, "qwen2"), rank, port)
    here = cases.Here(rank, port, folder)
    for name, case in vars(cases).items():
        if not name.startswith("case_"):
            continue
        try:
            case(here)
            error = None
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"case": name, "error": error}), flush=True)
    tiny.end()


if __name__ == "__main__":
    main()
