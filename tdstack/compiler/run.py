"""Runs of `gemm_allreduce.compile` and `gemm_allreduce.check` in the compiler's environment."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdstack.compiler.environment import Compiler
from tdstack.errors import CheckFailed, HostError
from tdstack.process import json_report, last_words, run
from tdstack.verify import gpuless


@dataclass(frozen=True)
class CompileJob:
    """What to compile and where.

    `sources` is the folder that `gemm_allreduce` lies in, `out` the bundle's, `cache` that of
    compiled variants; `jobs` is the number of processes, 0 for the compiler's own choice;
    `variants` are names, none for all that dispatch can choose.
    """

    cuda: str
    archs: tuple[str, ...]
    sources: Path
    out: Path
    cache: Path
    jobs: int = 0
    variants: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return the compiler's options."""
        words = ["--cuda", self.cuda, "--out", str(self.out), "--cache", str(self.cache), "--json"]
        words += [word for arch in self.archs for word in ("--arch", arch)]
        words += [word for name in self.variants for word in ("--variant", name)]
        return [*words, "--jobs", str(self.jobs)] if self.jobs else words


def run_compiler(
    compiler: Compiler, job: CompileJob, scratch: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the compiler and return its report; `say` gets its progress while it runs.

    Its temporary files are below `scratch`. An interruption ends it with all its workers; what is
    compiled by then is in the cache.
    Raises: HostError when it cannot run here; CheckFailed when a kernel does not compile, with
    the compiler's words.
    """
    # Triton-distributed cannot be imported without a GPU, or what stands in for one.
    launcher = [str(Path(gpuless.__file__).resolve())] if compiler.forked else []
    ptxas = str(compiler.ptxas)
    done = run(
        [*_python(compiler), *launcher, "-m", "gemm_allreduce.compile", *job.words()],
        cwd=job.sources,
        environment={
            "TRITON_PTXAS_PATH": ptxas,
            # Triton 3.6 and later look for a second one for sm_100 and up.
            "TRITON_PTXAS_BLACKWELL_PATH": ptxas,
            "TMPDIR": str(scratch),
        },
        say=say,
        group=True,
    )
    report = json_report(done.stdout)
    if done.returncode == 0 and report.get("ok"):
        return report
    errors = "\n".join(report.get("errors", []))
    if done.returncode == 1 and errors:
        raise CheckFailed(
            "the kernels do not compile",
            where=f"CUDA {job.cuda}, {', '.join(job.archs)}",
            got=errors,
            details=report,
        )
    killed = done.returncode == -signal.SIGKILL
    raise HostError(
        "the compiler was killed" if killed else "the compiler does not run on this host",
        where=str(compiler.folder),
        got=errors or f"exit status {done.returncode}: {last_words(done)}",
        remedy="if memory was short: --jobs 1; what is compiled by now is kept"
        if killed
        else "remove that folder and run the verb again, which makes it anew",
    )


def check_bundle(compiler: Compiler, job: CompileJob) -> dict[str, Any]:
    """Return the report of the kernels' own checks on the bundle (docs/kernels.md).

    Raises: HostError when there is none.
    """
    command = [*_python(compiler), "-m", "gemm_allreduce.check", "--dir", str(job.out), "--json"]
    done = run(command, cwd=job.sources)
    report = json_report(done.stdout)
    if "bundles" not in report:
        raise HostError(
            "the cubins cannot be checked on this host",
            where=str(compiler.folder),
            got=f"exit status {done.returncode}: {last_words(done)}",
        )
    return report


def _python(compiler: Compiler) -> list[str]:
    # Started in the folder of the sources, Python finds them there, and with -E and -s nothing
    # else that is not in the environment.
    return [str(compiler.python), "-E", "-s"]
