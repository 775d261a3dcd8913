"""The kernels' cubins, compiled by the very Triton and ptxas that the image holds.

The compiler runs in a throw-away container of the layer below the kernels, on what their wheel
installs: the sources that the image gets are the sources that were compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdstack.assemble.bundle import MANIFEST, read_bundle
from tdstack.assemble.unpack import unpack_wheel
from tdstack.engines.base import Engine, Mount, RunRequest, RunResult
from tdstack.errors import CheckFailed, HostError
from tdstack.lock.model import Arch, LockedFile
from tdstack.plan import PREFIX, Plan
from tdstack.process import json_report
from tdstack.stack import Stack
from tdstack.wheelhouse.store import Store

WORK = "/work"
# A cubin takes 1.5 s of one core; a limit is for what hangs, not for what is slow.
LIMIT_S, LIMIT_S_PER_CUBIN = 120, 20


@dataclass(frozen=True)
class Compilation:
    """A bundle, and what it took. `size` is of all cubins, in bytes; `reused` were in the cache."""

    bundle: Path
    archs: tuple[str, ...]
    cubins: int
    compiled: int
    reused: int
    size: int
    triton: str
    ptxas: str

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready data, without the bundle's place, which is gone by then."""
        return {name: value for name, value in asdict(self).items() if name != "bundle"}


def compile_cubins(
    engine: Engine,
    plan: Plan,
    wheel: LockedFile,
    scratch: Path,
    root: Path,
    store: Store,
    say: Callable[[str], None],
) -> Compilation:
    """Compile every variant for every architecture of the plan, below `scratch`.

    `wheel` is that of kernels/ in the checkout `root`. The image below the kernels layer must be
    in the engine. `say` gets the compiler's progress while it runs.
    Raises: CheckFailed with the compiler's words, or when it used other tools than the plan's;
    HostError when the image lacks a tool; TimeLimitError when it hangs.
    """
    sources, bundle = scratch / "kernels-sources", scratch / "bundle"
    unpack_wheel(store.path(wheel), wheel.name, sources, "", lambda _: False)
    bundle.mkdir()
    mounts = [
        Mount(sources, f"{WORK}/sources"),
        Mount(root / "tdstack" / "verify", f"{WORK}/verify"),
        Mount(store.cubins(), f"{WORK}/cache", writable=True),
        Mount(bundle, f"{WORK}/bundle", writable=True),
    ]
    request = RunRequest(
        ref=plan.layers[-2].ref,
        command=compile_command(plan),
        mounts=mounts,
        # Whoever runs this need not be a user of the image, nor have a home there.
        env={"PYTHONPATH": f"{WORK}/sources", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"},
        user=engine.owner(),
        limit_s=LIMIT_S + LIMIT_S_PER_CUBIN * sum(plan.cubins.values()),
    )
    done = engine.run(request, lambda line: say(f"  {line}"))
    report = json_report(done.stdout)
    if done.status:
        raise _failure(done, report, request.ref)
    read_bundle(bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    check_manifest(manifest, plan.stack, plan.cubins, request.ref)
    return Compilation(
        bundle=bundle,
        archs=tuple(plan.stack.archs),
        cubins=len(manifest["cubins"]),
        compiled=report["compiled"],
        reused=report["reused"],
        size=sum(cubin["size"] for cubin in manifest["cubins"]),
        triton=triton_of(plan.stack),
        ptxas=ptxas_of(plan.stack),
    )


def compile_command(plan: Plan) -> list[str]:
    """Render what is run in the container. Pure."""
    # Triton-distributed cannot be imported without a GPU, or what stands in for one.
    launcher = [f"{WORK}/verify/gpuless.py"] if plan.stack.flavour == "distributed" else []
    command = [f"/{PREFIX}/bin/python", *launcher, "-m", "gemm_allreduce.compile", "--json"]
    command += ["--cuda", plan.stack.cuda, "--out", f"{WORK}/bundle", "--cache", f"{WORK}/cache"]
    return [*command, *(word for arch in plan.stack.archs for word in ("--arch", arch))]


def triton_of(stack: Stack) -> str:
    """Return the version that the stack's Triton has in its metadata. Pure."""
    return next(p.version for p in stack.packages["triton"] if p.name == "triton")


def ptxas_of(stack: Stack) -> str:
    """Return the version of the line's ptxas: that of the package which brings it. Pure."""
    brings = [p for p in stack.packages["cuda"] if p.name.startswith("nvidia-cuda-nvcc")]
    return brings[0].version


def check_manifest(
    manifest: Mapping[str, Any], stack: Stack, planned: Mapping[Arch, int], where: str
) -> None:
    """Compare who compiled what with the stack and the planned cubins of each arch. Pure.

    Raises: CheckFailed naming what differs, and `where` the compiler ran.
    """
    triton, cubins = manifest["triton"], manifest["cubins"]
    counts = {arch: sum(c["arch"] == arch for c in cubins) for arch in stack.archs}
    pairs: list[tuple[str, object, object]] = [
        ("Triton", triton_of(stack), triton["distribution"]),
        ("Triton-distributed", stack.flavour == "distributed", triton["distributed"]),
        ("ptxas", [ptxas_of(stack)], sorted({c["ptxas"] for c in cubins})),
        ("cubins", dict(planned), counts),
        ("all cubins", sum(planned.values()), len(cubins)),
    ]
    wrong = [(name, expected, found) for name, expected, found in pairs if expected != found]
    if wrong:
        raise CheckFailed(
            "the kernels were not compiled as planned",
            where=where,
            expected="; ".join(f"{name}: {expected}" for name, expected, _ in wrong),
            got="; ".join(f"{name}: {found}" for name, _, found in wrong),
            remedy="an environment variable there may name another Triton or ptxas",
        )


def _failure(done: RunResult, report: Mapping[str, Any], ref: str) -> CheckFailed | HostError:
    words = "\n".join(report.get("errors") or done.stderr.strip().splitlines()[-20:])
    if done.status == 3:
        return HostError(
            "the image lacks what compiles the kernels",
            where=ref,
            got=words,
            remedy="the base image or the Triton wheel is not what it should be; "
            "try the default base",
        )
    return CheckFailed(
        "the kernels do not compile in the image",
        where=f"{ref}, exit status {done.status}",
        got=words[-4000:],
        remedy="what did compile is kept; correct the sources and run the verb again",
    )
