"""Options that every program here has: which ranks, and a file that must be new."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def ranks_parser(program: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser with the ranks and ``--out``, of which `out` says what it is."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", choices=("virtual", "processes"), required=True)
    w = "numbers of virtual ranks, as 1,8; processes: their number is torchrun's"
    parser.add_argument("--w", type=numbers, default=[], help=w)
    parser.add_argument("--transport", choices=("nvshmem", "symmetric"), default="nvshmem")
    parser.add_argument("--out", type=Path, required=True, help=f"{out}; must not exist")
    return parser


def check_ranks(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Fill in and check what `ranks_parser` added. Raises: SystemExit 2."""
    if given.ranks == "virtual":
        given.w = given.w or [8]
        if bad := [w for w in given.w if w not in (1, 2, 4, 8)]:
            parser.error(f"--w: 1, 2, 4 and 8 virtual ranks can be had, not {bad}")
    elif "RANK" not in os.environ:
        parser.error("--ranks processes is started by torchrun")
    # Another may come here after rank 0 has begun to write.
    if writes():
        if given.out.exists():
            parser.error(f"--out: {given.out} exists")
        if not os.access(given.out.resolve().parent, os.W_OK):
            parser.error(f"--out: {given.out.resolve().parent} is no folder that can be written")


def writes() -> bool:
    """Return whether this process writes the file: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def numbers(text: str) -> list[int]:
    """Return whole numbers, separated by commas. Raises: ValueError."""
    return [int(part) for part in text.split(",")]
