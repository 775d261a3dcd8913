"""`python -m tdstack.pages [--check]`: see the package."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tdstack.pages import stale

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Iterable[str], root: Path = ROOT) -> int:
    """Write the stale files; with --check only name them, and return 1 if there is any."""
    found = stale(root)
    if "--check" in arguments:
        for name in found:
            print(f"{name} is stale: run invoke lint --fix", file=sys.stderr)
        return 1 if found else 0
    for name, text in found.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"{name} written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
