#!/opt/tdstack/bin/python
"""tdstack-verify: does this environment still hold what its lock slice says?

Runs inside the image with the standard library alone, as any user, without a GPU. It reads
/opt/tdstack/manifest.json and compares; it changes nothing.
Exit codes: 0 all well, 1 a check failed, 2 usage, 3 no manifest, 4 bytes differ.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# Only Triton-distributed's library holds this name; `triton.__version__` is the same on both.
FINGERPRINT = b"distributed.get_rank"
IMPORT_LIMIT_S = 180


@dataclass(frozen=True)
class Finding:
    """The answer of one check; `code` is the exit code that it asks for."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""
    code: int = 0


Manifest = dict[str, Any]
Check = Callable[[Path, Manifest], Iterator[Finding]]


def passed(check: str, detail: str) -> Finding:
    return Finding(check, True, detail)


def failed(check: str, detail: str, remedy: str, code: int = 1) -> Finding:
    return Finding(check, False, detail, remedy, code)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages_of(manifest: Manifest) -> dict[str, str]:
    return {p["name"]: p["version"] for layer in manifest["layers"].values() for p in layer}


def site_of(prefix: Path, manifest: Manifest) -> Path:
    return prefix / "lib" / f"python{manifest['python']}" / "site-packages"


def check_packages(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """Every pinned package is there in its version, once, and nothing was added."""
    wanted = packages_of(manifest)
    found: dict[str, list[str]] = {}
    for dist in metadata.distributions(path=[str(site_of(prefix, manifest))]):
        found.setdefault(canonical(dist.metadata["Name"]), []).append(dist.version)
    wrong = [
        f"{name} {version} (found: {', '.join(found.get(name, ['nothing']))})"
        for name, version in sorted(wanted.items())
        if found.get(name) != [version]
    ]
    if wrong:
        yield failed("packages", "; ".join(wrong), "start from a fresh container of this image")
    else:
        yield passed("packages", f"{len(wanted)} packages in their pinned versions")
    added = sorted(set(found) - set(wanted) - {"gemm-allreduce"})
    if added:
        yield passed("additions", f"not from the lock: {', '.join(added)}")


def check_files(prefix: Path, manifest: Manifest, deep: bool) -> Iterator[Finding]:
    """Every recorded file is there with its size; with `deep`, with its sha256."""
    site = site_of(prefix, manifest)
    count, wrong = 0, []
    for record in sorted(site.glob("*.dist-info/RECORD")):
        for name, digest, size in csv.reader(record.read_text().splitlines()):
            path = site / name
            count += 1
            try:
                same = not size or path.stat().st_size == int(size)
                if same and deep and digest:
                    same = digest == record_hash(path)
            except OSError:
                same = False
            if not same:
                wrong.append(f"{name} ({record.parent.name})")
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        yield failed("files", f"changed or missing: {shown}", "start from a fresh image", 4)
    else:
        yield passed("files", f"{count} files {'by sha256' if deep else 'by size'}")


def record_hash(path: Path) -> str:
    with path.open("rb") as stream:
        raw = hashlib.file_digest(stream, "sha256").digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def check_triton(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """The Triton on disk is the flavour that was asked for, by fingerprint."""
    library = site_of(prefix, manifest) / "triton" / "_C" / "libtriton.so"
    try:
        with (
            library.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            fork = view.find(FINGERPRINT) >= 0
    except (OSError, ValueError) as error:
        yield failed("triton", f"no usable libtriton.so: {error}", "start from a fresh image")
        return
    found = "distributed" if fork else "stock"
    if found == manifest["triton"]:
        yield passed("triton", f"libtriton.so is {found}")
    else:
        yield failed(
            "triton",
            f"libtriton.so is {found}, the image was built as {manifest['triton']}",
            "another install replaced Triton's files; start from a fresh image",
        )


def check_nvshmem(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """Exactly one NVSHMEM host library, and it says the version of its wheel."""
    site = site_of(prefix, manifest)
    copies = sorted({p.resolve() for p in site.rglob("libnvshmem_host.so*")})
    wheels = {n: v for n, v in packages_of(manifest).items() if n.startswith("nvidia-nvshmem")}
    if len(copies) != 1 or len(wheels) != 1:
        yield failed("nvshmem", f"{len(copies)} host libraries: {copies}", "exactly one is right")
        return
    wanted = next(iter(wheels.values()))
    code = "import nvshmem.core as n; print(n.get_version().libnvshmem_version)"
    status, out, error = python(prefix, code)
    match = re.search(r"\d+\.\d+\.\d+", out)
    got = match.group(0) if match else out.strip()
    if status or got != wanted:
        detail = f"host library says {got or error[-200:]}, wheel says {wanted}"
        yield failed("nvshmem", detail, "device and host versions would split; use a fresh image")
    else:
        yield passed("nvshmem", f"one host library, {got}")


def check_ptxas(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """The line's own ptxas is what the environment and Triton's own search both reach."""
    site = site_of(prefix, manifest)
    own = site / manifest["ptxas"]
    toolkit = manifest["toolkit"][0]["version"]
    if not os.access(own, os.X_OK):
        yield failed("ptxas", f"{own} cannot be executed", "start from a fresh image")
        return
    said = subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", said)
    version = match.group(1) if match else "?"
    chosen = Path(os.environ.get("TRITON_PTXAS_PATH", own))
    bundled = site / "triton/backends/nvidia/bin/ptxas"
    if version != toolkit:
        yield failed("ptxas", f"says {version}, the line's is {toolkit}", "use a fresh image")
    elif not chosen.exists() or not chosen.samefile(own) or not bundled.samefile(own):
        yield failed("ptxas", f"TRITON_PTXAS_PATH is {chosen}", f"set it to {own}")
    else:
        yield passed("ptxas", f"{version}, {manifest['cuda']}'s own")


def check_imports(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """What the image is for can be imported without a GPU."""
    modules = ["nvshmem.core", "cuda.core", "gemm_allreduce"]
    modules += ["torch"] if manifest["torch"] != "none" else []
    # The fork's import asks the GPU driver, which a build host does not have.
    modules += ["triton"] if manifest["triton"] == "stock" else []
    for module in modules:
        status, out, error = python(prefix, f"import {module} as m; print(m.__name__)")
        if status:
            reason = error.strip().splitlines()[-1:] or [f"exit {status}"]
            yield failed(f"import {module}", reason[0], "see docs/troubleshooting.md")
        else:
            yield passed(f"import {module}", out.strip())


def check_pip(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """pip sees no broken requirement."""
    del manifest
    command = [str(prefix / "bin/python"), "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield failed("pip check", done.stdout.strip()[-400:], "start from a fresh image")
    else:
        yield passed("pip check", "no broken requirements")


def check_jit(prefix: Path, manifest: Manifest) -> Iterator[Finding]:
    """What Triton's run-time compilation needs is there, and its cache can be written."""
    del prefix, manifest
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if shutil.which("gcc") else ["gcc"]
    missing += [] if header.exists() else [str(header)]
    if missing:
        yield failed("jit", f"missing: {', '.join(missing)}", "install them in the image")
    else:
        yield passed("jit", "gcc and Python.h are there")
    cache = Path(os.environ.get("TRITON_CACHE_DIR", "/var/cache/tdstack/triton"))
    if os.access(cache, os.W_OK):
        yield passed("cache", f"{cache} can be written by {os.getuid()}:{os.getgid()}")
    else:
        detail = f"{cache} cannot be written by {os.getuid()}:{os.getgid()}"
        yield failed("cache", detail, "run with group 0, or set TRITON_CACHE_DIR")


def python(prefix: Path, code: str) -> tuple[int, str, str]:
    command = [str(prefix / "bin/python"), "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 6, "", f"no answer in {IMPORT_LIMIT_S} s"
    return done.returncode, done.stdout, done.stderr


def run_checks(prefix: Path, manifest: Manifest, quick: bool, deep: bool) -> Iterator[Finding]:
    checks: list[Check] = [check_packages]
    checks.append(lambda p, m: check_files(p, m, deep))
    checks += [check_triton, check_ptxas, check_jit]
    if not quick:
        checks += [check_nvshmem, check_imports, check_pip]
    for check in checks:
        yield from check(prefix, manifest)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tdstack-verify", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out imports and pip check")
    parser.add_argument("--deep", action="store_true", help="read every file's sha256")
    parser.add_argument("--prefix", type=Path, default=Path("/opt/tdstack"))
    options = parser.parse_args(arguments)
    try:
        manifest = json.loads((options.prefix / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        print(
            f"tdstack-verify: no usable manifest under {options.prefix}: {error}", file=sys.stderr
        )
        return 3
    findings = list(run_checks(options.prefix, manifest, options.quick, options.deep))
    code = max((f.code for f in findings), default=0)
    if options.json:
        report = {"schema": 1, "exit_code": code, "findings": [asdict(f) for f in findings]}
        print(json.dumps(report, indent=1))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:20}  {finding.detail}")
            if finding.remedy:
                print(f"      {'remedy':20}  {finding.remedy}")
    return code


if __name__ == "__main__":
    sys.exit(main())
