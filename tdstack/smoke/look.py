"""`invoke smoke --merge` and `--compare`: runs that were recorded, shown as one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tdstack.console import say, table
from tdstack.errors import CheckFailed, UsageError
from tdstack.smoke.compare import compare, say_comparison
from tdstack.smoke.merge import merge, merged_page, say_merged
from tdstack.smoke.report import read_run, write_whole

FILE: Final = "run.jsonl"


def merge_runs(paths: Iterable[str], out: str = "") -> dict[str, Any]:
    """Print a cluster's runs as tables; write them as a page into the folder ``out``, if named.

    Raises: UsageError when there is nothing to merge; CheckFailed, with the data as its details,
    when a node did not pass, was cut off, lacks a tier or is far slower than the others.
    """
    merged = merge(Path(path).expanduser() for path in paths)
    if out:
        folder = Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "index.html", merged_page(merged))
    for title, columns, rows in say_merged(merged):
        table(title, columns, rows)
    for note in merged.notes:
        say(note)
    if out:
        say(f"report: {folder / 'index.html'}")
    if not merged.ok:
        bad = [node.name for node in merged.nodes if node.state != "passed"]
        bad += [o.node for o in merged.outliers if o.verdict == "slow"]
        raise CheckFailed(
            merged.headline, where=", ".join(dict.fromkeys(bad)), details=merged.as_dict()
        )
    return merged.as_dict()


def compare_runs(pair: Sequence[str]) -> dict[str, Any]:
    """Print what changed from the first run to the second: files, or folders of reports.

    Raises: UsageError unless there are two; HostError, IntegrityError for files that cannot be
    read; CheckFailed, with the data as its details, when the second is worse beyond the noise.
    """
    if len(pair) != 2:
        raise UsageError(
            "a comparison is of two runs",
            where=" ".join(f"--compare {path}" for path in pair),
            expected="--compare A --compare B",
        )
    before, after = (read_run(_run_file(Path(path).expanduser())) for path in pair)
    found = compare(before, after)
    for title, columns, rows in say_comparison(found):
        table(title, columns, rows)
    if found.worse:
        raise CheckFailed(found.headline, where=pair[1], details=found.as_dict())
    say(found.headline)
    return found.as_dict()


def _run_file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path
