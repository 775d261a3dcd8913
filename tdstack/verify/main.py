"""The program tdstack-verify: checks of one environment, as a table or JSON.

With a manifest (an image of tdstack) the environment must be what the manifest says; without
one it must have exactly one Triton and one NVSHMEM. Nothing is changed but by --fix.
Exit codes: 0 all well, 1 a check failed, 2 usage, 3 no such environment, 4 bytes differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .cubins import check_cubins
from .environment import Environment, NoEnvironmentError, find_environment
from .finding import Finding
from .imports import check_imports, modules_of
from .installed import Distribution, distributions
from .manifest import (
    ANEW,
    FRESH,
    OWN,
    Manifest,
    check_files,
    check_jit,
    check_packages,
    check_pip,
    check_ptxas,
    on_host,
    packages_of,
)
from .nvshmem.checks import check_nvshmem
from .triton.diagnosis import check_triton, diagnose
from .triton.mend import Installer, MendError, mend
from .triton.swap import SwapError

IMAGE = Path("/opt/tdstack")
PACKAGE = Path(__file__).resolve().parent
# As installed, in an image or a prefix, it lies in lib/tdstack_verify of what it is to check.
OWN_PREFIX = PACKAGE.parents[1] if PACKAGE.name == "tdstack_verify" else IMAGE
LAUNCHER = Path(__file__).with_name("gpuless.py")
# Given the options --wheel and --incomplete; raises MendError when there is nothing to install.
MakeInstaller = Callable[[str, bool], Installer]


@dataclass(frozen=True)
class Options:
    """What to check and how deep; `expected` is distributed, stock or empty."""

    prefix: Path
    expected: str = ""
    quick: bool = False
    deep: bool = False


@dataclass(frozen=True)
class Report:
    """All findings, what --fix did, and the exit code that follows."""

    environment: Environment
    verdict: str
    findings: tuple[Finding, ...]
    mended: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """Return the highest exit code that a finding asks for."""
        return max((f.code for f in self.findings), default=0)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data (docs/verify.md)."""
        return {
            "schema": 2,
            "prefix": str(self.environment.prefix),
            "python": self.environment.version,
            "triton": self.verdict,
            "mended": list(self.mended),
            "exit_code": self.code,
            "findings": [asdict(f) for f in self.findings],
        }


def verify(options: Options, installer: Installer | None = None, *, fix: bool = False) -> Report:
    """Check an environment, after mending it if `fix` is set.

    Raises: NoEnvironmentError; MendError and SwapError from --fix, with the old state in place.
    """
    environment = find_environment(options.prefix)
    manifest = read_manifest(environment.prefix)
    expected = options.expected or (str(manifest["triton"]) if manifest else "")
    mended = tuple(mend(environment, expected, installer)) if fix else ()
    installed = tuple(distributions(environment.sites))
    diagnosis = diagnose(environment, expected, installed)
    findings = list(_of_manifest(environment, manifest, installed, options) if manifest else ())
    findings += check_triton(diagnosis, FRESH if manifest else "")
    if not options.quick:
        findings += check_nvshmem(environment, _nvshmem_of(manifest))
        forked = diagnosis.judgement.library == "distributed"
        findings += check_imports(
            environment, _modules(installed, manifest, forked), forked, LAUNCHER
        )
        findings += check_cubins(environment, manifest, installed)
        findings += check_pip(environment)
    if manifest and on_host(manifest):
        findings = [replace(f, remedy=ANEW) if f.remedy == FRESH else f for f in findings]
    return Report(environment, diagnosis.judgement.verdict.value, tuple(findings), mended)


def _modules(
    installed: tuple[Distribution, ...], manifest: Manifest | None, forked: bool
) -> tuple[str, ...]:
    names = {d.name for d in installed}
    if manifest:
        # What the manifest names must import, even if its metadata is gone.
        names |= set(packages_of(manifest)) | OWN
    lacking = any(d.provenance.get("lacks") for d in installed if d.name == "triton")
    return modules_of(names, "torch" in names, forked, complete=not lacking)


def _nvshmem_of(manifest: Manifest | None) -> str | None:
    pinned = packages_of(manifest) if manifest else {}
    return next((v for n, v in pinned.items() if n.startswith("nvidia-nvshmem")), None)


def read_manifest(prefix: Path) -> Manifest | None:
    """Return the slice of the lock that built the environment, or None if it is not ours."""
    try:
        manifest: Manifest = json.loads((prefix / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return manifest


def _of_manifest(
    environment: Environment,
    manifest: Manifest,
    installed: tuple[Distribution, ...],
    options: Options,
) -> Iterator[Finding]:
    yield from check_packages(manifest, installed)
    yield from check_files(installed, deep=options.deep)
    yield from check_ptxas(environment, manifest)
    yield from check_jit(environment, manifest)


def main(arguments: list[str] | None = None, make_installer: MakeInstaller | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    options = Options(given.prefix, given.triton, given.quick, given.deep)
    installer = make_installer(given.wheel, given.incomplete) if make_installer else None
    if given.wheel and make_installer is None:
        parser.error("--wheel needs a checkout of tdstack; this copy has no installer")
    if given.prefix == IMAGE and not (IMAGE / "bin").is_dir():
        parser.error("--prefix DIR: this is no image of tdstack, so name the environment")
    try:
        report = verify(options, installer, fix=given.fix)
    except NoEnvironmentError as error:
        print(f"tdstack-verify: {error}", file=sys.stderr)
        print("  remedy: name the folder of an environment, such as a venv", file=sys.stderr)
        return 3
    except (MendError, SwapError) as error:
        print(f"tdstack-verify: not mended: {error}", file=sys.stderr)
        if isinstance(error, MendError) and error.remedy:
            print(f"  remedy: {error.remedy}", file=sys.stderr)
        report = verify(options)
        show(report, as_json=given.json)
        return max(1, report.code)
    show(report, as_json=given.json)
    return report.code


def show(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout."""
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
        return
    for line in report.mended:
        print(f"fixed {line}")
    for finding in report.findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:20}  {finding.detail}")
        for title, text in (("symptom", finding.symptom), ("remedy", finding.remedy)):
            if text:
                print(f"      {title:20}  {text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tdstack-verify", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out imports and pip check")
    parser.add_argument("--deep", action="store_true", help="read every file's sha256")
    parser.add_argument("--prefix", type=Path, default=OWN_PREFIX, help="the environment's folder")
    parser.add_argument(
        "--triton",
        choices=["distributed", "stock"],
        default="",
        help="what must be there; default: what the manifest says, or what there are traces of",
    )
    parser.add_argument("--fix", action="store_true", help="mend what can be mended safely")
    parser.add_argument("--wheel", default="", help="with --fix: the Triton-distributed to put in")
    parser.add_argument(
        "--incomplete", action="store_true", help="take a wheel that lacks packages"
    )
    return parser
