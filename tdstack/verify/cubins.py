"""The cubins of gemm_allreduce: whole, fit for the installed package, and those of the image.

What a cubin must be the package itself knows: `python -m gemm_allreduce.check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .environment import Environment, ask
from .finding import Finding, failed, passed
from .installed import Distribution
from .manifest import FRESH, OWN, Manifest, packages_of

CHECK = "cubins"
AGAIN = "install gemm-allreduce and its cubins again, both of one version"
SHOWN = 5
Report = Mapping[str, Any]


def check_cubins(
    environment: Environment, manifest: Manifest | None, installed: Sequence[Distribution]
) -> Iterator[Finding]:
    """Check the installed bundles by hash and by what they hold; of an image also whose they are.

    Outside an image a package without cubins is no failure: it compiles at the first call.
    """
    package = next((d for d in installed if d.name in OWN), None)
    if package is None:
        if manifest:
            yield failed(CHECK, "gemm-allreduce is not installed", FRESH)
        return
    command = [str(environment.python), "-m", "gemm_allreduce.check", "--json"]
    # Empty: what is installed is asked for, not what the caller's variable names.
    answer = ask(command, {"GEMM_AR_CUBINS": ""})
    try:
        report: Report = json.loads(answer.out)
        bundles: Sequence[Report] = report["bundles"]
        findings: Sequence[Report] = report["findings"]
    except (ValueError, KeyError, TypeError):
        yield _no_report(package, answer.last_line, in_image=manifest is not None)
        return
    remedy = FRESH if manifest else AGAIN
    if manifest is None and not bundles and {f["code"] for f in findings} == {3}:
        yield passed(CHECK, "none are installed: every kernel is compiled at its first call")
        return
    yield from _gathered(findings, remedy)
    if manifest:
        yield from _of_the_image(bundles, manifest)
    elif not findings:
        yield from (passed(CHECK, describe(bundle)) for bundle in bundles)


def describe(bundle: Report) -> str:
    """Return one line about a bundle. Pure."""
    line = f"CUDA {bundle['cuda']}" if bundle["cuda"] else "no CUDA line"
    archs = ", ".join(
        a["arch"] if a["cubins"] == a["variants"] else f"{a['arch']} (only {_count(a)})"
        for a in bundle["archs"]
    )
    count = sum(a["cubins"] for a in bundle["archs"])
    by = f"Triton {bundle['triton']}, ptxas {', '.join(_ptxas(bundle))}"
    return f"{line}: {count} for {archs}, by {by}"


def _no_report(package: Distribution, words: str, *, in_image: bool) -> Finding:
    if "No module named gemm_allreduce.check" in words and not in_image:
        return passed(CHECK, f"{package.label} has none")
    return failed(CHECK, f"no report: {words}", FRESH if in_image else AGAIN)


def _gathered(findings: Iterable[Report], remedy: str) -> Iterator[Finding]:
    """Yield one finding for each exit code that those of the package ask for."""
    by_code: dict[int, list[str]] = {}
    for found in findings:
        where = " ".join(filter(None, (found["arch"], found["variant"])))
        told = f"{found['what']}: expected {found['expected']}, got {found['got']}"
        # 3 is for a program that was given nothing to check; here that is a failed check.
        code = 4 if found["code"] == 4 else 1
        by_code.setdefault(code, []).append(f"{where}: {told}" if where else told)
    for code, told_all in sorted(by_code.items()):
        more = f"; and {len(told_all) - SHOWN} more" if len(told_all) > SHOWN else ""
        yield failed(CHECK, "; ".join(told_all[:SHOWN]) + more, remedy, code)


def _of_the_image(bundles: Sequence[Report], manifest: Manifest) -> Iterator[Finding]:
    own = [b for b in bundles if b["cuda"] == manifest["cuda"]]
    for other in bundles:
        if other not in own:
            yield passed(CHECK, f"not from the lock: {describe(other)}")
    if len(own) != 1:
        detail = f"{len(own)} bundles for CUDA {manifest['cuda']}, expected one"
        yield failed(CHECK, detail, FRESH)
        return
    wrong = differences(own[0], manifest)
    if wrong:
        yield failed(CHECK, "; ".join(wrong), FRESH)
    else:
        yield passed(CHECK, describe(own[0]))


def differences(bundle: Report, manifest: Manifest) -> list[str]:
    """Return what of an image's bundle is not as the image's slice of the lock says. Pure."""
    compilers = [p for p in manifest["toolkit"] if p["name"].startswith("nvidia-cuda-nvcc")]
    pairs: list[tuple[str, object, object]] = [
        ("archs", sorted(manifest["archs"]), sorted(a["arch"] for a in bundle["archs"])),
        ("Triton", packages_of(manifest).get("triton", "none"), bundle["triton"]),
        ("ptxas", [p["version"] for p in compilers], _ptxas(bundle)),
    ]
    wrong = [f"{what}: {got}, expected {wanted}" for what, wanted, got in pairs if wanted != got]
    short = [a for a in bundle["archs"] if a["cubins"] < a["variants"]]
    return wrong + [f"{a['arch']}: {_count(a)} kernels" for a in short]


def _ptxas(bundle: Report) -> list[str]:
    return sorted({version for arch in bundle["archs"] for version in arch["ptxas"]})


def _count(arch: Report) -> str:
    return f"{arch['cubins']} of {arch['variants']}"
