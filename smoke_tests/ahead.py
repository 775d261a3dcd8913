"""Compiles many kernels at once into Triton's own cache, where launches then find them.

A launch compiles one kernel at a time; a tuner has hundreds. The same sources, types and options
give the same key in the cache (kernels/tests/test_kernel_compile.py): others can fill it.

``python -m smoke_tests.ahead ARCH SECONDS`` reads variants as JSON, which `text_of` writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from gemm_allreduce.compiler import Job, prepare, run_job
from gemm_allreduce.forked import run_forked
from gemm_allreduce.toolchain import find_ptxas
from gemm_allreduce.variants import Tile, Variant


def compile_ahead(variants: Sequence[Variant], arch: str, limit_s: float = 600.0) -> None:
    """Compile variants for this host's Triton, on all cores, in processes that know no GPU.

    What fails here, or is not done within the limit, is compiled, or fails, where it is launched.
    """
    command = [sys.executable, "-m", "smoke_tests.ahead", arch, str(limit_s)]
    # Not forked from here: a process that has used a GPU must not be.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(command, input=text_of(variants), env=environment, text=True, check=False)


def text_of(variants: Sequence[Variant]) -> str:
    """Return variants as JSON. Pure."""
    return json.dumps([asdict(variant) for variant in variants])


def variants_of(text: str) -> list[Variant]:
    """Return the variants of `text_of`. Pure. Raises: ValueError, TypeError for other text."""
    return [Variant(**{**fields, "tile": Tile(**fields["tile"])}) for fields in json.loads(text)]


def main() -> int:
    """Compile what stdin lists, until the limit; return 0, whatever fails."""
    arch, limit_s = sys.argv[1:]
    deadline = time.monotonic() + float(limit_s)
    ptxas = find_ptxas(arch)
    jobs = [Job(variant, arch, ptxas, "") for variant in variants_of(sys.stdin.read())]
    prepare(jobs)

    def work(job: Job) -> int:
        return len(run_job(job).data)

    with closing(run_forked(jobs, work, len(os.sched_getaffinity(0)))) as running:
        for done in running:
            if done.result is None:
                print(f"{jobs[done.index]}: {done.error}", file=sys.stderr)
            if time.monotonic() > deadline:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
