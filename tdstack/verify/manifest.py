"""Checks against the manifest: the slice of the lock that built the environment."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .environment import Environment, ask
from .finding import DOCS, Finding, failed, passed
from .installed import Distribution, matches

Manifest = dict[str, Any]
FRESH = "start from a fresh container of this image"
ANEW = "run `invoke install` again, which makes the version anew"
# Ours beside the lock: the kernels' wheels are built from the checkout.
OWN = frozenset({"gemm-allreduce"})
CUBINS = "gemm-allreduce-cubins-cu"


def packages_of(manifest: Manifest) -> dict[str, str]:
    """Return the pinned packages and their versions."""
    return {p["name"]: p["version"] for layer in manifest["layers"].values() for p in layer}


def check_packages(manifest: Manifest, installed: Sequence[Distribution]) -> Iterator[Finding]:
    """Every pinned package is there in its version, once; what was added is named."""
    wanted = packages_of(manifest)
    found: dict[str, list[str]] = {}
    for dist in installed:
        found.setdefault(dist.name, []).append(dist.version)
    wrong = [
        f"{name} {version} (found: {', '.join(found.get(name, ['nothing']))})"
        for name, version in sorted(wanted.items())
        if found.get(name) != [version]
    ]
    if wrong:
        yield failed("packages", "; ".join(wrong), FRESH)
    else:
        yield passed("packages", f"{len(wanted)} packages in their pinned versions")
    own = OWN | {CUBINS + manifest["cuda"].replace(".", "")}
    if added := sorted(set(found) - set(wanted) - own):
        yield passed("additions", f"not from the lock: {', '.join(added)}")


def check_files(installed: Sequence[Distribution], *, deep: bool) -> Iterator[Finding]:
    """Every recorded file is there with its size; with `deep`, with its sha256."""
    count, wrong = 0, []
    for dist in installed:
        for file in dist.files:
            count += 1
            if not matches(file, deep=deep):
                wrong.append(f"{file.path.name} ({dist.label}: {file.path})")
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        yield failed("files", f"changed or missing: {shown}", FRESH, 4)
    else:
        yield passed("files", f"{count} files {'by sha256' if deep else 'by size'}")


def check_ptxas(environment: Environment, manifest: Manifest) -> Iterator[Finding]:
    """The line's own ptxas is what the environment and Triton's own search both reach."""
    own = environment.site / manifest["ptxas"]
    toolkit = manifest["toolkit"][0]["version"]
    if not os.access(own, os.X_OK):
        yield failed("ptxas", f"{own} cannot be executed", FRESH)
        return
    match = re.search(r"V(\d+\.\d+\.\d+)", ask([str(own), "--version"]).out)
    version = match.group(1) if match else "?"
    chosen = Path(os.environ.get("TRITON_PTXAS_PATH", own))
    bundled = environment.site / "triton/backends/nvidia/bin/ptxas"
    if version != toolkit:
        yield failed("ptxas", f"says {version}, the line's is {toolkit}", FRESH)
    elif not chosen.exists() or not chosen.samefile(own) or not bundled.samefile(own):
        yield failed("ptxas", f"TRITON_PTXAS_PATH is {chosen}", f"set it to {own}")
    else:
        yield passed("ptxas", f"{version}, {manifest['cuda']}'s own")


def on_host(manifest: Manifest) -> bool:
    """Return whether the environment is a prefix on a host, not part of an image. Pure."""
    return bool(manifest.get("base", {}).get("image") == "host")


def check_jit(environment: Environment, manifest: Manifest) -> Iterator[Finding]:
    """What Triton's run-time compilation needs is there, and its cache can be written.

    On a host compiler and headers are the host's, and may be on some of its nodes only: that they
    are not here is said, and is no failure, as compiled kernels need neither.
    """
    header = environment.include / "Python.h"
    missing = [] if shutil.which("gcc") else ["gcc"]
    missing += [] if header.exists() else [str(header)]
    if not missing:
        yield passed("jit", "gcc and Python.h are there")
    elif on_host(manifest):
        yield passed(
            "jit",
            f"not on this host: {', '.join(missing)}; compiled kernels run, Triton compiles none",
        )
    else:
        yield failed("jit", f"missing: {', '.join(missing)}", "install them in the image")
    cache = _cache(manifest)
    who = f"{os.getuid()}:{os.getgid()}"
    if os.access(_existing(cache), os.W_OK):
        yield passed("cache", f"{cache} can be written by {who}")
    else:
        detail = f"{cache} cannot be written by {who}"
        yield failed("cache", detail, "run with group 0, or set TRITON_CACHE_DIR")


def _cache(manifest: Manifest) -> Path:
    if named := os.environ.get("TRITON_CACHE_DIR"):
        return Path(named)
    if on_host(manifest):
        return Path(os.path.expanduser("~/.triton/cache"))  # Triton's own default
    return Path("/var/cache/tdstack/triton")


def _existing(path: Path) -> Path:
    """Return the nearest folder that is there: Triton makes those that lack."""
    return next((p for p in (path, *path.parents) if p.exists()), path)


def check_pip(environment: Environment) -> Iterator[Finding]:
    """pip sees no broken requirement."""
    pip = [str(environment.python), "-m", "pip"]
    if ask([*pip, "--version"]).status:
        yield passed("pip check", "there is no pip in this environment; not asked")
        return
    answer = ask([*pip, "check", "--disable-pip-version-check"])
    if answer.status:
        yield failed("pip check", answer.out.strip()[-400:], f"see {DOCS}")
    else:
        yield passed("pip check", "no broken requirements")
