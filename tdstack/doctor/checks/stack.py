"""The system under the stack, the line that was asked for, and what of tdstack is here."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.host import Host, older, release, some
from tdstack.doctor.verdicts import arch, verdict, verdicts


def platform(host: Host) -> Answer | None:
    """Judge the machine and the kind of kernel."""
    system = host.facts.os
    evidence = " ".join(
        part for part in (system.distro, system.distro_version, system.kernel, system.arch) if part
    )
    if system.arch is None:
        return unknown(host, "os.arch", "the machine is not known")
    if system.arch not in ("x86_64", "aarch64"):
        return trouble("missing", "machine", f"no packages for {system.arch}", evidence)
    if host.wsl:
        what = "this is Linux under Windows: no direct access between GPUs, no RDMA"
        return trouble("warning", "wsl", what, evidence)
    if system.arch == "aarch64":
        what = "this platform is locked, and untested"
        return trouble("note", "arm64", what, evidence)
    return ok("a platform that the lock serves", evidence)


def glibc(host: Host) -> Answer | None:
    """Judge the C library, for installs without a container."""
    version, least = host.facts.os.glibc, host.thresholds.limits.glibc
    if version is None or not release(version):
        return None
    if older(version, least):
        what = f"glibc {version} is too old for an install without a container"
        return trouble("warning", "glibc-old", what, f"{version}, {least} needed")
    return ok(f"glibc {version} runs the packages", f"{least} needed")


def line(host: Host) -> Answer | None:
    """Judge the CUDA line that was asked for, or whether any runs."""
    if host.cuda:
        found = verdict(host, host.cuda)
        if found.runs:
            return ok(f"this host runs CUDA {host.cuda}", found.why)
        if found.runs is None:
            return unknown(host, "gpus", f"whether this host runs CUDA {host.cuda}")
        others = [cuda for cuda, one in verdicts(host).items() if one.runs]
        what = f"this host cannot run CUDA {host.cuda}"
        if others:
            return trouble("missing", "line", what, found.why, lines=f"--cuda {others[-1]}")
        return trouble("missing", "line-none", what, found.why)
    every = verdicts(host)
    runs = [cuda for cuda, one in every.items() if one.runs]
    if runs:
        cannot = some(f"{cuda}: {one.why}" for cuda, one in every.items() if cuda not in runs)
        return ok(f"this host runs CUDA {', '.join(runs)}", f"not {cannot}" if cannot else "")
    if all(one.runs is False for one in every.values()):
        what = "this host can run no CUDA line; it can build images and check them"
        why = next(iter(every.values())).why
        return trouble("missing", "line-none", what, why)
    return unknown(host, "gpus", "which CUDA lines this host runs")


def installed(host: Host) -> Answer | None:
    """Judge the prefix or the container that the stack is in."""
    found = host.facts.tdstack
    if found.where in (None, "none"):
        return None
    where = found.path or ("this container" if found.where == "container" else "?")
    evidence = f"{where}: {some(found.problems or ()) or found.state or 'not known'}"
    if found.state == "absent":
        what = "nothing of tdstack is in this prefix"
        return trouble("missing", "prefix-absent", what, evidence, prefix=where)
    if found.state == "broken" or found.verify == "failed":
        what = f"the {found.where} is not as it was made"
        name = "container-broken" if found.where == "container" else "prefix-broken"
        return trouble("failure", name, what, evidence, prefix=where)
    if found.state != "whole":
        return unknown(host, "tdstack.state", f"the state of the {found.where} is not known")
    parts = (f"CUDA {found.cuda}" if found.cuda else "", found.triton or "", found.version or "")
    return ok(f"the {found.where} is whole", " ".join(part for part in parts if part))


def fits(host: Host) -> Answer | None:
    """Judge whether what is installed runs on this driver and these GPUs."""
    found, driver = host.facts.tdstack, host.facts.driver.version
    if found.where in (None, "none") or not host.gpus:
        return None
    if found.driver_floor and driver and older(driver, found.driver_floor):
        what = "what is installed needs a newer driver"
        evidence = f"driver {driver}, {found.driver_floor} needed"
        return trouble("missing", "driver-old", what, evidence, floor=found.driver_floor)
    archs = {arch(gpu) for gpu in host.gpus} - {""}
    lacking = sorted(archs - set(found.archs or archs))
    if lacking:
        what = f"what is installed has no cubins for {some(lacking)}"
        return trouble("missing", "no-cubin", what, f"it has {some(found.archs or ())}")
    if found.archs is None and found.driver_floor is None:
        return None
    return ok("what is installed fits driver and GPUs", some(found.archs or ()))


CHECKS = (
    Check("platform", "the machine is one that the lock serves, and not under Windows", platform),
    Check("glibc", "glibc is new enough for an install without a container", glibc),
    Check("line", "the host runs the CUDA line that is asked for, or any", line),
    Check("installed", "the prefix or container of tdstack is whole", installed),
    Check("installed-fits", "what is installed fits driver and GPUs", fits),
)
