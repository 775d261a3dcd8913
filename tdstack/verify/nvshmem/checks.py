"""One NVSHMEM, whole, of one version: host library, device bitcode, wheel, torch and nvshmem4py."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from ..environment import Environment
from ..finding import Finding, failed, passed
from ..symptoms import known
from .facts import DEVICE, HOST, Bitcode, Facts, Library, Wheel, gather
from .users import NOT_LOADED, SPLIT, judge_bindings, judge_torch, line_of, release

LAST_WITH_ONE_FILE = "3.6.5"
NO_BITCODE = known("nvshmem-no-bitcode").symptom


def check_nvshmem(
    environment: Environment, expected: str | None, variables: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Yield what is right and wrong with an environment's NVSHMEM.

    `expected` is the version that it should be, None for any. `variables` are those that its
    programs would run with. The libraries are read, which takes about a second, and not loaded,
    but for nvshmem4py in a process of its own.
    """
    yield from judge(gather(environment, variables), expected)


def judge(facts: Facts, expected: str | None) -> Iterator[Finding]:
    """Decide on what was found. Pure."""
    if not facts.wheels and not facts.host and not facts.device and not facts.arches:
        yield _nothing(facts, expected)
        return
    yield _wheel(facts.wheels)
    yield _host(facts)
    yield _device(facts)
    for pointed in facts.pointed:
        yield _pointed(facts, pointed.variable, pointed.value, pointed.bitcode)
    yield _copies(facts)
    yield from judge_bindings(facts)
    if facts.torch:
        yield from judge_torch(facts)
    if expected is not None:
        yield _expected(facts, expected)


def compatible(device: str, host: str) -> bool:
    """Return NVSHMEM's rule at run time: the same major, and no newer minor on the device."""
    (device_major, device_minor), (host_major, host_minor) = (
        release(device)[:2],
        release(host)[:2],
    )
    return device_major == host_major and device_minor <= host_minor


def _nothing(facts: Facts, expected: str | None) -> Finding:
    elsewhere = f"; outside of it: {_list(facts.copies)}" if facts.copies else ""
    detail = f"no NVSHMEM is installed{elsewhere}"
    reasons = [str(binding) for binding in facts.bindings]
    if expected is not None:
        reasons.insert(0, f"version {expected} was expected")
    if not reasons:
        return passed("nvshmem", detail)
    line = line_of(facts.bindings[0]) if facts.bindings else "cuNN"
    version = expected or LAST_WITH_ONE_FILE
    remedy = f"install nvidia-nvshmem-{line}=={version}"
    return failed("nvshmem", f"{detail}, but {' and '.join(reasons)}", remedy)


def _wheel(wheels: tuple[Wheel, ...]) -> Finding:
    check = "nvshmem-wheel"
    if not wheels:
        detail = "its files are there, and no distribution nvidia-nvshmem-cuNN that owns them"
        return failed(check, detail, "remove the folder nvidia/nvshmem, then install the wheel")
    if len(wheels) > 1:
        return _several(check, wheels)
    (wheel,) = wheels
    if wheel.missing:
        detail = f"{wheel}: {', '.join(wheel.missing)} of its RECORD is not there"
        return failed(check, detail, f"reinstall {wheel.name}=={wheel.version}")
    if wheel.foreign:
        detail = f"{wheel}: other bytes than its RECORD lists in {', '.join(wheel.foreign)}"
        return failed(check, detail, f"reinstall {wheel.name}=={wheel.version}", 4, SPLIT)
    return passed(check, f"exactly one, {wheel}")


def _several(check: str, wheels: tuple[Wheel, ...]) -> Finding:
    named = [f"{wheel} in {wheel.site}" for wheel in wheels]
    if len({wheel.site for wheel in wheels}) == 1:
        named = [str(wheel) for wheel in wheels]
        rule = "they own the same files, and the last one installed wins"
    else:
        rule = "the first folder on sys.path wins"
    whole = [str(w) for w in wheels if w.own and not w.foreign and not w.missing]
    mixed = [f"{', '.join(w.own)} of {w}" for w in wheels if w.own]
    if whole:
        disk = f"whole on disk: {', '.join(whole)}"
    elif mixed:
        disk = f"on disk is a mixture: {'; '.join(mixed)}"
    elif any(w.foreign for w in wheels):
        disk = "the bytes on disk are none of theirs"
    else:
        disk = "no RECORD tells whose bytes are on disk"
    names = " ".join(dict.fromkeys(wheel.name for wheel in wheels))
    # Each takes the common files with it.
    remedy = f"uninstall {names}, all of them, and then install the one that is wanted"
    return failed(check, f"{' and '.join(named)}: {rule}; {disk}", remedy, symptom=SPLIT)


def _host(facts: Facts) -> Finding:
    check, host = "nvshmem-host", facts.host
    wheel = facts.wheels[0] if len(facts.wheels) == 1 else None
    remedy = f"reinstall {wheel.name}=={wheel.version}" if wheel else "reinstall NVSHMEM"
    if host is None:
        return failed(check, f"no {HOST}.3 in the environment", remedy, symptom=NOT_LOADED)
    if not host.version:
        return failed(check, f"{host.path} is no NVSHMEM library: it tells no version", remedy)
    if wheel and release(host.version) != release(wheel.version):
        detail = f"{host.path.name} says {host.version}, its wheel is {wheel}"
        return failed(check, detail, remedy, symptom=SPLIT)
    return passed(check, f"{host.path.name} says {host.version}")


def _device(facts: Facts) -> Finding:
    check, device = "nvshmem-device", facts.device
    if device is None:
        # An architecture's own file serves nobody here: Triton 3.4 links the one file.
        arches = ", ".join(f"{a.path.name} {a.version or '?'}" for a in facts.arches)
        why = f", only one per architecture, as since 3.7: {arches}" if arches else ""
        remedy = f"install NVSHMEM {LAST_WITH_ONE_FILE} or older"
        return failed(check, f"no {DEVICE}{why}", remedy, symptom=NO_BITCODE)
    if not device.version:
        detail = f"{device.path.name}: {device.problem}"
        return failed(check, detail, "reinstall NVSHMEM")
    host = facts.host.version if facts.host else ""
    if not host:
        return passed(check, f"{DEVICE} says {device.version}; no host library to compare it with")
    if device.version == host:
        return passed(check, f"{DEVICE} says {device.version}, as the host library does")
    detail = f"{DEVICE} says {device.version}, the host library {host}"
    if compatible(device.version, host):
        # One wheel brings both: whatever put another one there did not stop at this file.
        detail += "; it would run, but the files are of two installs"
        return failed(check, detail, "reinstall NVSHMEM")
    remedy = "reinstall NVSHMEM, and compile again what was compiled with this bitcode"
    return failed(check, detail, remedy, symptom=SPLIT)


def _pointed(facts: Facts, variable: str, value: str, bitcode: Bitcode | None) -> Finding:
    check, unset = "nvshmem-variables", f"unset {variable}"
    if bitcode is None:
        return failed(check, f"{variable}={value} has no {DEVICE}", unset, symptom=NO_BITCODE)
    if not bitcode.version:
        return failed(check, f"{variable}={value}: {bitcode.problem}", unset)
    host = facts.host.version if facts.host else ""
    says = f"{variable}={value}: its bitcode says {bitcode.version}"
    if facts.device and os.path.realpath(bitcode.path) == os.path.realpath(facts.device.path):
        return passed(check, f"{variable} is the environment's own")
    if not host or compatible(bitcode.version, host):
        return passed(check, f"{says}, the host library {host or 'nothing'}")
    return failed(check, f"{says}, the host library {host}", unset, symptom=SPLIT)


def _copies(facts: Facts) -> Finding:
    check, host = "nvshmem-copies", facts.host
    like_host = (host.version, host.sha256) if host else None
    same = [c for c in facts.copies if (c.version, c.sha256) == like_host]
    others = [c for c in facts.copies if c not in same]
    if not others:
        noted = f"; the same bytes also as {_list(same)}" if same else ""
        return passed(check, f"no second host library{noted}")
    # All versions have the soname libnvshmem_host.so.3, so that the loader takes either.
    own = f"the environment's is {host.version or '?'}" if host else "the environment has none"
    remedy = "remove them, or take their folders out of LD_LIBRARY_PATH and the loader's cache"
    return failed(check, f"{own}, others: {_list(others)}", remedy, symptom=SPLIT)


def _expected(facts: Facts, expected: str) -> Finding:
    check = "nvshmem-expected"
    versions = [wheel.version for wheel in facts.wheels]
    if facts.host and facts.host.version:
        versions.append(facts.host.version)
    wrong = [v for v in dict.fromkeys(versions) if release(v) != release(expected)]
    if wrong or not versions:
        detail = f"expected is {expected}, there is {' and '.join(wrong) or 'no version'}"
        return failed(check, detail, f"install NVSHMEM {expected}, or start from a fresh image")
    return passed(check, expected)


def _list(copies: Iterable[Library]) -> str:
    return ", ".join(f"{c.path} ({c.version or 'version unknown'})" for c in copies)
