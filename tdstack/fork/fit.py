"""Whether a Triton-distributed fits a base and its stack. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tdstack.errors import IntegrityError
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import LockedTritonDistributed, Platform, PythonMinor
from tdstack.tags import MACHINE, numbers, tag_ranks

# What a wheel that does not fit is told to look for: the Python and glibc of well-known images.
KNOWN_BASES = {
    "ubuntu:24.04": ("3.12", "2.39"),
    "ubuntu:22.04": ("3.10", "2.35"),
    "debian:13": ("3.13", "2.41"),
    "debian:12": ("3.11", "2.36"),
}
_ANY_GLIBC = "2.99"


def check_fit(
    fork: ForkWheel,
    pinned: LockedTritonDistributed,
    python: PythonMinor,
    platform: Platform,
    glibc: str,
    certain: bool,
) -> tuple[str, ...]:
    """Refuse a fork that does not run on the base; return what could not be decided yet.

    Without `certain`, `glibc` is only assumed, and what needs a newer one is noted.
    Raises: IntegrityError, with the bases that would fit.
    """
    source = fork.source
    if fork.version.split("+")[0] != pinned.base_version:
        raise IntegrityError(
            f"{source.name} is built on another Triton than torch pins",
            where="--wheel",
            expected=pinned.base_version,
            got=fork.version,
        )
    if not runs_on(fork, python, platform, glibc if certain else _ANY_GLIBC):
        raise _misfit(fork, python, platform, glibc)
    if numbers(source.glibc) > numbers(glibc):
        return (
            f"{source.name} needs glibc {source.glibc}; whether the base image has it is found "
            "out before anything is downloaded for the build",
        )
    return ()


def runs_on(fork: ForkWheel, python: PythonMinor, platform: Platform, glibc: str) -> bool:
    """Return whether the fork's library loads there, by its tags and by what it really needs.

    Tags lie: upstream's release wheels are tagged for glibc 2.28 and need 2.38.
    """
    tags = parse_wheel_filename(fork.file.name)[3]
    return (
        not tags.isdisjoint(tag_ranks(python, platform, glibc))
        and fork.source.python in ("", python)
        and fork.machine in ("", MACHINE[platform])
        and numbers(fork.source.glibc) <= numbers(glibc)
    )


def _misfit(fork: ForkWheel, python: str, platform: str, glibc: str) -> IntegrityError:
    source = fork.source
    tags = "-".join(source.name.removesuffix(".whl").rsplit("-", 3)[1:])
    needs = f"Python {source.python or 'as tagged'}, {fork.machine or 'any machine'}"
    bases = [
        f"{name} (Python {p}, glibc {g})"
        for name, (p, g) in KNOWN_BASES.items()
        if source.python in ("", p) and numbers(g) >= numbers(source.glibc)
    ]
    such = f", such as one made from {' or '.join(bases)}" if bases else ""
    return IntegrityError(
        f"{source.name} does not run on this base",
        where="--wheel",
        expected=f"a wheel for Python {python}, {platform}, glibc {glibc} or older",
        got=f"one for {needs}, glibc {source.glibc or 'any'} or newer, tagged {tags}",
        remedy=f"bring Python {source.python or python} with --cpython FILE, a stand-alone one; or "
        f"name a base that fits with --base REF@sha256:... --python {source.python or python}: an "
        f"image with that Python, its headers, gcc and glibc {source.glibc or glibc} or "
        f"newer{such}; or give a wheel that was built for this base",
    )


def record_notes(pinned: LockedTritonDistributed, fork: ForkWheel | None) -> tuple[str, ...]:
    """Note a fork that the lock does not record, or recorded ones that were not given."""
    if fork is None:
        names = ", ".join(wheel.name for wheel in pinned.wheels)
        return (f"the lock records {names}; name it with --wheel or --wheelhouse",) if names else ()
    source = fork.source
    if source.sha256 in {wheel.sha256 for wheel in pinned.wheels} or source.commit == pinned.commit:
        return ()
    return (
        f"{source.name} (sha256 {source.sha256[:12]}...) is not in versions.lock; "
        "`invoke lock --wheel FILE` records it, so that another one is noticed",
    )


def requirement_notes(
    fork: ForkWheel, held: Mapping[str, str], python: PythonMinor
) -> tuple[str, ...]:
    """Note the fork's requirements that the stack does not meet: `pip check` would complain.

    `held` are the stack's packages and their versions.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    unmet = []
    for text in fork.requires:
        try:
            wish = Requirement(text)
        except InvalidRequirement:
            unmet.append(f"{text!r} (not a requirement)")
            continue
        if wish.marker and not wish.marker.evaluate(target):
            continue
        version = held.get(canonicalize_name(wish.name))
        if version is None or not wish.specifier.contains(version, prereleases=True):
            unmet.append(f"{text} (here: {version or 'nothing'})")
    if not unmet:
        return ()
    return (f"{fork.source.name} requires what this stack does not hold: {', '.join(unmet)}",)
