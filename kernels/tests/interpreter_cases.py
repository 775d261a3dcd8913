"""Runs cases in Triton's interpreter: ``TRITON_INTERPRET=1 interpreter_cases.py MODULE``.

Prints a line of JSON for each: its name, and what went wrong or null.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    for name, case in list(vars(module).items()):  # torch.compile adds to them
        if not name.startswith("case_"):
            continue
        error = None
        try:
            case()
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"case": name, "error": error}), flush=True)


if __name__ == "__main__":
    main()
