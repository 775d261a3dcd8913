"""`invoke quickstart`: the whole way once, with what this host can reach, no GPU needed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tdstack.console import Stopwatch, emit_json, megabytes, say, table
from tdstack.engines.base import Engine, RunRequest
from tdstack.engines.choose import choose_engine
from tdstack.errors import CheckFailed
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
        made = plan(workspace, request, source=ANYWHERE, engine=engine, as_json=False)
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
    with watch.step("compile"):
        cubins = compile_one(chosen, report.ref, list(made.stack.line.archs), made.stack.flavour)
    with watch.step("verify"):
        findings = verify_image(chosen, report.ref)
    summary: dict[str, object] = {
        **report.as_dict(),
        "cubins": cubins,
        "verify": findings,
        "steps_s": {name: round(seconds, 2) for name, seconds in watch.seconds.items()},
    }
    if as_json:
        emit_json(summary)
    table(
        "kernels compiled inside the image, without a GPU",
        ["arch", "variant", "size", "shared memory", "ptxas"],
        [[c["arch"], c["name"], f"{c['size']} B", f"{c['shared']} B", c["ptxas"]] for c in cubins],
    )
    table(
        "tdstack-verify",
        ["check", "finding"],
        [[str(f["check"]), str(f["detail"])] for f in findings],
    )
    table("steps", ["step", "seconds"], [[n, f"{s:.1f}"] for n, s in watch.seconds.items()])
    size = sum(layer.size for layer in report.layers)
    counts = f"{len(cubins)} cubins, {len(findings)} checks passed"
    say(f"done: {report.ref}, {megabytes(size)}, {counts}")
    return summary


def compile_one(
    engine: Engine, ref: str, archs: list[str], flavour: Flavour
) -> list[dict[str, Any]]:
    """Compile one kernel variant for every arch of the line inside the image.

    Raises: CheckFailed with the compiler's words.
    """
    archs_given = [word for arch in archs for word in ("--arch", arch)]
    # Triton-distributed cannot be imported without a GPU, or what stands in for one.
    launcher = [f"/{PREFIX}/{GPULESS}"] if flavour == "distributed" else []
    command = [f"/{PREFIX}/bin/python", *launcher, "-m", "gemm_allreduce.compile"]
    command += ["--quick", "--json"]
    done = engine.run(
        RunRequest(ref, [*command, "--out", "/tmp/cubins", *archs_given], user="12345:0")
    )
    if done.status:
        raise CheckFailed(
            "a kernel did not compile inside the image", where=ref, got=done.stderr[-1500:]
        )
    manifest: dict[str, Any] = json.loads(done.stdout)
    cubins: list[dict[str, Any]] = manifest["cubins"]
    return cubins
