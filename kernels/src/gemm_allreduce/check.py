"""Checks bundles of compiled kernels, without a GPU, torch or Triton.

``python -m gemm_allreduce.check [--dir DIR] [--json] [--shape M,N,K,W,ARCH]``

Looks at DIR, else at the bundle that GEMM_AR_CUBINS names, else at all that are installed. Checks
that they were compiled from this package's sources, and of every cubin: its hash, architecture,
name, arguments, threads, registers, shared and local memory, the width of its accesses; of every
architecture: its size. The limits are in limits.toml. Prints a line per architecture, then what
does not hold. ``--shape`` also says which cubin serves a call of bf16.

Exit codes: 0 all hold; 1 something does not, or no bundle serves the shape; 2 usage; 3 no bundle;
4 bytes that are not the manifest's, or a damaged manifest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    CubinIntegrityError,
    MissingCubinError,
    Record,
    installed_bundles,
    named_bundle,
    read_bundle,
)
from .checks import Finding, check_cubin, check_size
from .compiler import multimem_forms
from .dispatch import ARCHS, Shape, choose, reachable_variants
from .limits import limits
from .variants import Variant

NO_BUNDLE = 3
INTEGRITY = 4


@dataclass(frozen=True)
class ArchReport:
    """One architecture of a bundle: how much there is, the most of each, and of how much."""

    arch: str
    cubins: int
    variants: int
    bytes: int
    budget: int
    registers: int
    local_bytes: int
    ptxas: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class BundleReport:
    """A bundle: what it was compiled from, its architectures, and what does not hold for all."""

    folder: str
    version: str
    cuda: str
    triton: str
    current: bool
    archs: tuple[ArchReport, ...]
    findings: tuple[Finding, ...]

    def all_findings(self) -> list[Finding]:
        """Return those of the bundle, then those of its architectures."""
        return [*self.findings, *(f for arch in self.archs for f in arch.findings)]


def report_of(bundle: Bundle) -> BundleReport:
    """Check a bundle; reads every cubin."""
    findings: list[Finding] = []
    try:
        bundle.require_current()
    except BundleError as error:
        what = "the bundle does not serve this package"
        findings.append(Finding("sources", "", "", what, __version__, str(error)))
    current = not findings
    return BundleReport(
        folder=str(bundle.folder),
        version=bundle.version,
        cuda=bundle.cuda,
        triton=bundle.triton,
        current=current,
        archs=tuple(_arch_report(bundle, arch, current=current) for arch in bundle.archs),
        findings=tuple(findings),
    )


def _arch_report(bundle: Bundle, arch: str, *, current: bool) -> ArchReport:
    records = [record for (of, _), record in bundle.records.items() if of == arch]
    known = arch in ARCHS
    variants = _variants(arch) if known else {}
    findings: list[Finding] = []
    if not known:
        what = "architecture that this package does not know"
        findings.append(Finding("arch", arch, "", what, ", ".join(ARCHS), arch))
    for record in records:
        findings += _record_findings(bundle, record, variants.get(record.name), current=current)
    # The budget is for what dispatch chooses.
    extra = {name for name, variant in variants.items() if variant.multimem}
    if known:
        findings += check_size(arch, sum(r.size for r in records if r.name not in extra))
    return ArchReport(
        arch=arch,
        cubins=len(records),
        variants=len(reachable_variants(arch)) if known else 0,
        bytes=sum(record.size for record in records),
        budget=limits().archs[arch].bundle_bytes if known else 0,
        registers=max(record.registers for record in records),
        local_bytes=max(record.local_bytes for record in records),
        ptxas=tuple(sorted({record.ptxas for record in records})),
        findings=tuple(findings),
    )


def _record_findings(
    bundle: Bundle, record: Record, variant: Variant | None, *, current: bool
) -> list[Finding]:
    try:
        data = bundle.read(record)
    except CubinIntegrityError as error:
        what = "the cubin is not the manifest's"
        sha256 = f"sha256 {record.sha256}"
        return [Finding("hash", record.arch, record.name, what, sha256, str(error), INTEGRITY)]
    if variant is not None:
        return check_cubin(variant, record, data)
    if not current:
        return []  # the bundle's own finding says it all
    what = "name that dispatch never chooses"
    return [Finding("variant", record.arch, record.name, what, "a variant", record.name)]


def _variants(arch: str) -> dict[str, Variant]:
    reachable = reachable_variants(arch)
    return {variant.name: variant for variant in (*reachable, *multimem_forms(reachable))}


def selection(bundles: Sequence[Bundle], shape: Shape) -> dict[str, Any]:
    """Return the variant that serves a shape, and per bundle the path of its cubin or why not."""
    variant = choose(shape).variant
    places = {}
    for bundle in bundles:
        try:
            record = bundle.record(variant.name, shape.arch)
        except MissingCubinError as error:
            places[str(bundle.folder)] = {"file": None, "why": str(error)}
        else:
            places[str(bundle.folder)] = {"file": record.file, "why": ""}
    return {"shape": asdict(shape), "variant": variant.name, "bundles": places}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (see the module's docstring)."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_allreduce.check",
        description="Check bundles of compiled kernels, without a GPU, torch or Triton.",
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a bundle; default: the installed")
    parser.add_argument("--json", action="store_true", help="report on stdout as JSON")
    parser.add_argument("--shape", metavar="M,N,K,W,ARCH", help="say which cubin serves that call")
    options = parser.parse_args(arguments)
    shape = None
    if options.shape:
        try:
            *numbers, arch = options.shape.split(",")
            tokens, features, depth, ranks = map(int, numbers)
            shape = Shape(tokens, features, depth, ranks, arch)
        except ValueError as error:
            parser.error(f"--shape {options.shape}: {error}; expected M,N,K,W,ARCH")

    named = options.dir or named_bundle()
    folders: list[Path] = [named] if named else installed_bundles()
    bundles: list[Bundle] = []
    findings: list[Finding] = []
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            what = "no bundle"
            findings.append(Finding("bundle", "", "", what, MANIFEST, str(folder), NO_BUNDLE))
            continue
        try:
            bundles.append(read_bundle(folder))
        except BundleError as error:
            what = "the manifest cannot be used"
            findings.append(Finding("manifest", "", "", what, "a manifest", str(error), INTEGRITY))
    if not folders:
        what = "no bundle is installed: every kernel is compiled at its first call"
        expected = "a wheel gemm-allreduce-cubins-*, --dir or GEMM_AR_CUBINS"
        findings.append(Finding("bundle", "", "", what, expected, "none", NO_BUNDLE))
    reports = [report_of(bundle) for bundle in bundles]
    selected = selection(bundles, shape) if shape else None
    if selected and bundles and not any(p["file"] for p in selected["bundles"].values()):
        what = "no bundle has the cubin of that shape"
        why = "; ".join(place["why"] for place in selected["bundles"].values())
        findings.append(
            Finding("shape", selected["shape"]["arch"], selected["variant"], what, "a cubin", why)
        )
    findings += [finding for report in reports for finding in report.all_findings()]
    code = max((finding.code for finding in findings), default=0)
    if options.json:
        document = {
            "ok": code == 0,
            "exit_code": code,
            "version": __version__,
            "bundles": [asdict(report) for report in reports],
            "selected": selected,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=1))
    else:
        _print(reports, selected, findings)
    return code


def _print(
    reports: Sequence[BundleReport], selected: dict[str, Any] | None, findings: Sequence[Finding]
) -> None:
    for report in reports:
        line = f"CUDA {report.cuda}, " if report.cuda else ""
        print(f"{report.folder}: {report.version}, {line}Triton {report.triton}")
        for arch in report.archs:
            found = f"{len(arch.findings)} findings" if arch.findings else "ok"
            print(
                f"  {arch.arch:7} {arch.cubins} of {arch.variants} cubins, "
                f"{arch.bytes / 1e6:.2f} of {arch.budget / 1e6:.2f} MB, at most "
                f"{arch.registers} registers and {arch.local_bytes} local bytes, "
                f"ptxas {', '.join(arch.ptxas)}: {found}"
            )
    if selected:
        print(f"selected: {selected['variant']}")
        for folder, place in selected["bundles"].items():
            print(f"  {folder}: {place['file'] or place['why']}")
    for finding in findings:
        print(f"error: {finding}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
