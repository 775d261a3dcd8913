"""Compare a cold `invoke build` (files fetched before) with a naive Dockerfile, in one run.

Both build the full stock image of one CUDA line with buildah, each into an empty store, on
this machine, one after the other. The naive one installs the same pins over the network with
one `pip install` on tdstack's base layer, which it gets for nothing; tdstack's time includes
making its base layer, down to the root file system, but not the compilation of kernels, which the
naive image lacks. The fetch into an empty cache is timed on its own. Sizes are sums of unpacked
layer tars.

    .venv/bin/python scripts/benchmark_build.py --cuda 12.4 --runs 3 --out docs/data/build.json

Needs root, buildah, 40 GB of disk, and the package index for the naive side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tdstack.engines.buildah import Buildah  # noqa: E402 - the checkout is no installed package
from tdstack.pipconf import pip_config  # noqa: E402
from tdstack.stack import Request  # noqa: E402
from tdstack.workspace import Workspace  # noqa: E402


def main() -> int:
    """Run the comparison and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", default="12.4")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    workspace = Workspace.here()
    plan = workspace.plan(Request(cuda=options.cuda, triton="stock"))
    workspace.fetch(plan.files)
    pins = [f"{p.name}=={p.version}" for p in plan.stack.all_packages()]
    assert plan.stack.rootfs is not None
    rootfs = workspace.store.path(plan.stack.rootfs.tar)
    # Asked before the runs: they leave the environment pointing to a store that is gone.
    engine = Buildah().describe()
    runs = []
    for _ in range(options.runs):
        rootfs.unlink(missing_ok=True)
        runs.append(one_run(options.cuda, plan.layers[0].ref, pins))
    report = {
        "command": f"scripts/benchmark_build.py --cuda {options.cuda} --runs {options.runs}",
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "python": platform.python_version(),
            "engine": engine,
        },
        "runs": runs,
        "time_ratio": statistics.median(r["tdstack_s"] / r["naive_s"] for r in runs),
        "time_ratio_with_fetch": statistics.median(
            (r["tdstack_s"] + r["fetch_s"]) / r["naive_s"] for r in runs
        ),
        "size_ratio": runs[-1]["tdstack_bytes"] / runs[-1]["naive_bytes"],
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text, end="")
    return 0


def one_run(cuda: str, base: str, pins: list[str]) -> dict[str, Any]:
    """Build both images in a fresh store; return times in seconds and sizes in bytes."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as name:
        folder = Path(name)
        config = folder / "storage.conf"
        config.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{name}/graph"\nrunroot = "{name}/run"\n'
        )
        os.environ["CONTAINERS_STORAGE_CONF"] = str(config)
        try:
            invoke = Path(sys.executable).with_name("invoke")
            build = [str(invoke), "build", "--cuda", cuda, "--triton", "stock", "--json"]
            fetch_s = empty_fetch(folder, [str(invoke), "fetch", "--cuda", cuda])
            begin = time.monotonic()
            ours = json.loads(run([*build, "--engine", "buildah"]))
            # The naive image holds no compiled kernels, and they may be in the store already.
            tdstack_s = time.monotonic() - begin - ours["seconds"]["compile"]
            begin = time.monotonic()
            run([*build, "--engine", "buildah"])
            again_s = time.monotonic() - begin
            context = naive_context(folder, pins)
            begin = time.monotonic()
            recipe = str(ROOT / "scripts/naive.Dockerfile")
            command = ["buildah", "build", "--isolation", "chroot", "--build-arg", f"BASE={base}"]
            run([*command, "--file", recipe, "--tag", "naive", context])
            naive_s = time.monotonic() - begin
            naive = Buildah().image("localhost/naive")
            assert naive is not None
            return {
                "tdstack_s": round(tdstack_s, 1),
                "naive_s": round(naive_s, 1),
                "fetch_s": round(fetch_s, 1),
                "again_s": round(again_s, 1),
                "image_id": ours["image_id"],
                "tdstack_bytes": ours["size"],
                "naive_bytes": naive.size,
                "tdstack_steps_s": ours["seconds"],
            }
        finally:
            subprocess.run(["buildah", "rmi", "--all", "--force"], capture_output=True, check=False)
            subprocess.run(["umount", f"{name}/graph/overlay"], capture_output=True, check=False)


def empty_fetch(folder: Path, command: list[str]) -> float:
    """Return the seconds that fetching every file into an empty cache takes."""
    cache = folder / "cache"
    begin = time.monotonic()
    run([*command, "--triton", "stock", "--json"], TDSTACK_CACHE=str(cache))
    seconds = time.monotonic() - begin
    shutil.rmtree(cache)
    return seconds


def naive_context(folder: Path, pins: list[str]) -> str:
    """Write the build context: the pins, and the certificates that the host's pip uses."""
    context = folder / "context"
    context.mkdir()
    (context / "requirements.txt").write_text("\n".join(pins) + "\n")
    certificate = pip_config().certificate
    if certificate:
        shutil.copy(certificate, context / "ca.crt")
    else:
        import certifi

        shutil.copy(certifi.where(), context / "ca.crt")
    return str(context)


def run(command: list[str], **variables: str) -> str:
    """Run a command; return its stdout; stop with its last words when it fails."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
