"""Containers: engines on the host and how GPUs get into them; or this container from inside."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.facts import Engine
from tdstack.doctor.host import Host, older, some

# They pass GPUs through by the toolkit's runtime or hook; apptainer and enroot have their own way.
BY_TOOLKIT = ("docker", "podman", "containerd")
BY_CDI = ("podman", "buildah")


def _working(host: Host) -> list[Engine]:
    return [engine for engine in host.facts.container.engines or () if engine.works]


def engine(host: Host) -> Answer | None:
    """Judge whether a container engine answers."""
    engines = host.facts.container.engines
    if host.inside:
        return None
    if engines is None:
        return unknown(host, "container.engines", "the container engines are not known")
    working = [f"{one.name} {one.version or ''}".strip() for one in _working(host)]
    if working:
        return ok("a container engine works", some(working))
    silent = [f"{one.name}: {one.why or 'does not answer'}" for one in engines if one.installed]
    what = "no container engine works"
    if host.installed:
        what = f"{what}; the stack is in a prefix"
        return trouble("note", "engine", what, some(silent) or "none is installed")
    return trouble("missing", "engine", what, some(silent) or "none is installed")


def version(host: Host) -> Answer | None:
    """Judge whether an engine is new enough to pass GPUs through."""
    floors = {"docker": host.thresholds.engines.docker, "podman": host.thresholds.engines.podman}
    known = [(e.name, e.version) for e in _working(host) if e.name in floors and e.version]
    if not known or host.inside:
        return None
    old = [
        f"{n} {v} is older than {floors[n]}" for n, v in known if n and v and older(v, floors[n])
    ]
    if old:
        return trouble("failure", "engine-old", "a container engine is too old for GPUs", some(old))
    return ok("container engines are new enough", some(f"{name} {v}" for name, v in known))


def storage(host: Host) -> Answer | None:
    """Judge how an engine stores layers."""
    known = [(one.name, one.storage) for one in _working(host) if one.storage]
    if not known or host.inside:
        return None
    slow = [f"{n}: {s}" for n, s in known if s in host.thresholds.engines.slow_storage]
    if slow:
        what = "an engine's storage copies whole layers: slow, and several times the space"
        return trouble("warning", "engine-storage", what, some(slow))
    return ok("engines share layers", some(f"{name}: {storage}" for name, storage in known))


def cgroup(host: Host) -> Answer | None:
    """Judge how engines limit containers: what that does to GPUs in them."""
    container = host.facts.container
    if container.cgroup is None or host.inside:
        return None
    if container.cgroup == 1:
        return trouble("note", "cgroup-v1", "control groups are of version 1", "cgroup v1")
    systemd = [
        one.name or "?"
        for one in _working(host)
        if one.name == "docker" and one.cgroup_driver == "systemd"
    ]
    if host.gpus and systemd and not host.inside and not container.cdi:
        what = "containers may lose their GPUs when systemd reloads"
        evidence = f"{some(systemd)}: cgroup driver systemd, no CDI"
        return trouble("note", "cgroup-systemd", what, evidence)
    return ok("control groups of version 2")


def toolkit(host: Host) -> Answer | None:
    """Judge whether an engine can pass GPUs through."""
    container = host.facts.container
    engines = [one for one in _working(host) if one.name in BY_TOOLKIT]
    if host.inside or not host.gpus or not engines:
        return None
    if container.toolkit is None:
        return unknown(host, "container.toolkit", "whether NVIDIA's container toolkit is here")
    names = some(one.name or "?" for one in engines)
    if not container.toolkit:
        what = "NVIDIA's container toolkit is not installed: containers get no GPU"
        severity: Severity = "note" if host.installed else "missing"
        return trouble(severity, "toolkit", what, f"engines: {names}")
    docker = next((one for one in engines if one.name == "docker"), None)
    if (
        docker
        and docker.runtimes is not None
        and "nvidia" not in docker.runtimes
        and not container.cdi
    ):
        what = "docker does not know NVIDIA's runtime"
        return trouble("failure", "toolkit-runtime", what, f"runtimes: {some(docker.runtimes)}")
    return ok("NVIDIA's container toolkit is there", container.toolkit_version or "")


def cdi(host: Host) -> Answer | None:
    """Judge the CDI files, which list the driver's libraries by version."""
    container = host.facts.container
    if host.inside or not host.gpus or container.cdi is None:
        return None
    own = [spec for spec in container.cdi if (spec.kind or "").startswith("nvidia.com/")]
    driver = host.facts.driver.version
    stale = [spec for spec in own if spec.driver and driver and spec.driver != driver]
    if stale:
        shown = some(f"{spec.file or '?'}: driver {spec.driver}" for spec in stale)
        what = "a CDI file was written for another driver"
        return trouble("failure", "cdi-stale", what, f"{shown}; loaded is {driver}")
    users = [one.name or "?" for one in _working(host) if one.name in BY_CDI]
    if not own and (users or container.toolkit_mode == "cdi"):
        evidence = f"used by {some(users) or 'the toolkit in its mode cdi'}"
        what = "no CDI file for NVIDIA: these engines get no GPU"
        return trouble("warning", "cdi-missing", what, evidence)
    return ok("CDI files fit the driver", some(spec.file or "?" for spec in own)) if own else None


def passthrough(host: Host) -> Answer | None:
    """Judge what of the driver is in this container."""
    variables = host.facts.environment or {}
    asked = variables.get("NVIDIA_DRIVER_CAPABILITIES")
    if not host.inside or not (host.facts.driver.devices or host.gpus):
        return None
    have = set((asked or "").replace(" ", "").split(","))
    if asked is not None and "all" not in have and not {"compute", "utility"} <= have:
        what = "the container got a part of the driver only"
        return trouble("failure", "capabilities", what, f"NVIDIA_DRIVER_CAPABILITIES={asked}")
    nodes = host.facts.driver.devices
    lacking = [n for n in ("nvidiactl", "nvidia-uvm") if nodes is not None and n not in nodes]
    if lacking and not host.wsl:
        what = "device nodes of the driver are missing in this container"
        return trouble("failure", "device-nodes", what, some(f"/dev/{name}" for name in lacking))
    return ok("the driver is passed into this container", f"{len(host.gpus)} GPUs")


CHECKS = (
    Check("engine", "a container engine works", engine),
    Check("engine-version", "it is new enough to pass GPUs through", version),
    Check("engine-storage", "it shares layers instead of copying them", storage),
    Check("cgroup", "control groups are of version 2, and keep a container's GPUs", cgroup),
    Check("container-toolkit", "NVIDIA's container toolkit passes GPUs through", toolkit),
    Check("cdi", "CDI files are there for who needs them, and fit the driver", cdi),
    Check("passthrough", "inside a container: the driver is passed in whole", passthrough),
)
