"""Who uses NVSHMEM in an environment: nvshmem4py and torch, and what they ask of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..environment import Answer
from ..finding import Finding, canonical, failed, passed
from ..symptoms import known
from .facts import Facts, Library, Wheel

SPLIT = known("nvshmem-split").symptom
NOT_LOADED = known("nvshmem-not-loaded").symptom
NO_BINDINGS = known("nvshmem-no-bindings").symptom
SET = "cuda-core 1.0.1 needs cuda-bindings 12.9.1 or later"
PATH = "install nvshmem4py 0.3, or name the folder of libnvshmem_host.so.3 in LD_LIBRARY_PATH"
# What an error of nvshmem4py's import holds: the symptom, and what mends it. Which module of
# cuda.bindings is missed depends on how old it is: utils in 12.9.0.
IMPORT_FAILURES = (
    ("libnvshmem_host", NOT_LOADED, PATH),
    ("No module named 'cuda.bindings", NO_BINDINGS, SET),
    ("cannot import bindings", NO_BINDINGS, SET),
)


def release(version: str) -> tuple[int, int, int]:
    """Return the first three numbers of a version: wheels may add what libraries cannot."""
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return major, minor, patch


def line_of(wheel: Wheel) -> str:
    """Return the CUDA line in a distribution's name, such as cu12."""
    return wheel.name.rpartition("-")[2]


def judge_bindings(facts: Facts) -> Iterator[Finding]:
    """Yield whether nvshmem4py is of the wheel's CUDA line, loads, and loads the right library."""
    check = "nvshmem4py"
    if not facts.bindings:
        yield passed(check, "not installed")
        return
    named = " and ".join(map(str, facts.bindings))
    lines = {line_of(wheel) for wheel in facts.wheels}
    if len(facts.bindings) > 1:
        remedy = "uninstall them all, and then install the one that is wanted"
        yield failed(check, f"{named} own the same files", remedy)
    elif lines and line_of(facts.bindings[0]) not in lines:
        wheels = " and ".join(map(str, facts.wheels))
        remedy = f"install nvshmem4py-{min(lines)} in its place"
        yield failed(check, f"{named} beside {wheels}", remedy)
    else:
        yield passed(check, named)
    if facts.told is not None:
        yield _told(facts.told, facts.host)


def _told(told: Answer, host: Library | None) -> Finding:
    check = "nvshmem4py-import"
    match = re.search(r"\d+\.\d+\.\d+", told.out)
    if told.status or not match:
        # An error's message may go on for lines: it is its first one that names it.
        errors = re.findall(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b.*", told.err, re.MULTILINE)
        said = errors[-1] if errors else told.last_line
        for part, symptom, remedy in IMPORT_FAILURES:
            if part in said:
                if symptom == NOT_LOADED and host is None:
                    remedy = "install NVSHMEM again: the library itself is not there"
                return failed(check, said, remedy, symptom=symptom)
        return failed(check, said, "install the versions that versions.lock names together")
    loaded = match.group(0)
    if host and host.version and loaded != host.version:
        detail = f"it loads NVSHMEM {loaded}, the environment's is {host.version}"
        remedy = "unset LD_LIBRARY_PATH, or remove the other NVSHMEM"
        return failed(check, detail, remedy, symptom=SPLIT)
    return passed(check, f"it loads NVSHMEM {loaded}")


def judge_torch(facts: Facts) -> Iterator[Finding]:
    """Yield whether the installed NVSHMEM is what torch pins, if it pins one."""
    check, torch = "nvshmem-torch", f"torch {facts.torch}"
    # A marker is taken to hold, but for an extra's: torch pins for the platform it is built for.
    pins = [pin.partition(";")[0] for pin in facts.pins if "extra" not in pin.partition(";")[2]]
    if not pins:
        yield passed(check, f"{torch} leaves NVSHMEM unpinned")
    for pin in pins:
        match = re.fullmatch(r"\s*([\w.-]+)\s*\(?\s*==\s*([^\s,()]+?)\s*\)?\s*", pin)
        if not match:
            yield passed(check, f"{torch} asks for {pin.strip()}, which is not compared")
            continue
        name, version = canonical(match.group(1)), match.group(2)
        if any(w.name == name and w.version == version for w in facts.wheels):
            yield passed(check, f"{torch} pins {name} {version}, which is there")
        else:
            there = " and ".join(map(str, facts.wheels)) or "none"
            remedy = f"install {name}=={version}, or a torch without this pin, such as 2.8.0"
            yield failed(check, f"{torch} pins {name} {version}, installed is {there}", remedy)
