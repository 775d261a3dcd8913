"""`invoke quickstart`: the whole way once, with what this host can reach, no GPU needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tdstack.console import Stopwatch, emit_json, megabytes, say, table
from tdstack.engines.base import Engine, RunRequest
from tdstack.engines.choose import choose_engine
from tdstack.errors import CheckFailed, ExitCode, IntegrityError
from tdstack.fork.model import ANYWHERE
from tdstack.plan import PREFIX
from tdstack.stack import Request
from tdstack.verbs import build, fetch, plan, verify_image
from tdstack.workspace import Workspace

# In every line, and what most of those who try this will run on.
ARCH = "sm_90"


def quickstart(
    workspace: Workspace, request: Request, *, engine: str, as_json: bool
) -> dict[str, object]:
    """Plan, fetch, build, verify; return the summary.

    Without an architecture in `request` kernels are compiled for `ARCH` alone.
    Raises: what the steps raise.
    """
    if not request.archs:
        say(f"kernels: for {ARCH} alone, to be quick; --arch names others, invoke build takes all")
        request = replace(request, archs=(ARCH,))
    watch = Stopwatch()
    with watch.step("plan"):
        plan(workspace, request, source=ANYWHERE, engine=engine, as_json=False)
    with watch.step("fetch"):
        fetch(workspace, request, source=ANYWHERE, as_json=False, dry=False)
    with watch.step("build"):
        report = build(
            workspace,
            request,
            source=ANYWHERE,
            engine=engine,
            output="",
            as_json=False,
            dry=False,
        )
    assert report is not None
    chosen = choose_engine(engine).engine
    with watch.step("check"):
        bundles = check_cubins(chosen, report.ref)
    with watch.step("verify"):
        findings = verify_image(chosen, report.ref)
    summary: dict[str, object] = {
        **report.as_dict(),
        "bundles": bundles,
        "verify": findings,
        "steps_s": {name: round(seconds, 2) for name, seconds in watch.seconds.items()},
    }
    if as_json:
        emit_json(summary)
    rows = [
        [
            arch["arch"],
            str(arch["cubins"]),
            megabytes(arch["bytes"]),
            bundle["triton"],
            *arch["ptxas"],
        ]
        for bundle in bundles
        for arch in bundle["archs"]
    ]
    table(
        "kernels in the image, compiled and checked without a GPU",
        ["arch", "cubins", "size", "Triton", "ptxas"],
        rows,
    )
    table(
        "tdstack-verify",
        ["check", "finding"],
        [[str(f["check"]), str(f["detail"])] for f in findings],
    )
    table("steps", ["step", "seconds"], [[n, f"{s:.1f}"] for n, s in watch.seconds.items()])
    size = sum(layer.size for layer in report.layers)
    cubins = sum(int(row[1]) for row in rows)
    counts = f"{cubins} cubins, {len(findings)} checks passed"
    say(f"done: {report.ref}, {megabytes(size)}, {counts}")
    return summary


def check_cubins(engine: Engine, ref: str) -> list[dict[str, Any]]:
    """Check the bundles of cubins in the image, as an arbitrary user; return what is in them.

    Each has `folder`, `version`, `cuda`, `triton` and `archs`, these `arch`, `cubins`, `bytes`,
    `ptxas` and more (docs/kernels.md).
    Raises: CheckFailed, or IntegrityError when bytes differ, with every finding.
    """
    command = [f"/{PREFIX}/bin/python", "-m", "gemm_allreduce.check", "--json"]
    done = engine.run(RunRequest(ref, command, user="12345:0"))
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise CheckFailed(
            "gemm_allreduce.check gave no report",
            where=ref,
            got=(done.stderr or done.stdout)[-600:],
        ) from error
    if done.status:
        kind = IntegrityError if done.status == ExitCode.INTEGRITY else CheckFailed
        raise kind(
            "the kernels in the image are not what they should be",
            where=ref,
            got="; ".join(_words(finding) for finding in report["findings"][:20]),
            remedy="build it again from a clean store",
        )
    bundles: list[dict[str, Any]] = report["bundles"]
    return bundles


def _words(finding: Mapping[str, str]) -> str:
    where = " ".join(filter(None, (finding["arch"], finding["variant"])))
    return f"{where or finding['check']}: {finding['what']} ({finding['got']})"
