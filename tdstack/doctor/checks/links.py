"""What joins the GPUs of a host: NVLink, NVSwitches and their Fabric Manager, direct access."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.hardware import Gpu, Pair
from tdstack.doctor.host import Host, name_of, names_of, some

WHOLE_BOARD = 8
"""GPUs of a board with NVSwitches; boards of four join their GPUs directly."""
# What switches NVLink multicast off, by its users: NVSHMEM, NCCL, PyTorch.
OFF: Mapping[str, frozenset[str]] = {
    "NVSHMEM_DISABLE_NVLS": frozenset({"1", "true", "y"}),
    "NVSHMEM_DISABLE_CUDA_VMM": frozenset({"1", "true", "y"}),
    "NCCL_NVLS_ENABLE": frozenset({"0"}),
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": frozenset({"1"}),
}


def once(pairs: Iterable[Pair] | None) -> list[Pair]:
    """Return every pair once: of the two directions the worse, where they differ."""
    found: dict[tuple[int, int], Pair] = {}
    for pair in pairs or ():
        ends = (pair.a if pair.a is not None else -1, pair.b if pair.b is not None else -1)
        key = (min(ends), max(ends))
        held = found.get(key)
        found[key] = pair if held is None else _worse(held, pair)
    return list(found.values())


def _worse(held: Pair, other: Pair) -> Pair:
    def worst(first: str | None, second: str | None) -> str | None:
        return second if first in ("ok", None) else first

    return replace(
        held,
        read=worst(held.read, other.read),
        write=worst(held.write, other.write),
        atomics=worst(held.atomics, other.atomics),
    )


def nvlink(host: Host) -> Answer | None:
    """Judge whether every GPU has all its links."""
    judged = [gpu for gpu in host.gpus if gpu.nvlinks is not None]
    wanting = [g for g in host.gpus if host.kind(g).sxm and g.nvlinks is None]
    if wanting:
        return unknown(host, "gpus.nvlinks", f"NVLinks of GPUs {names_of(wanting)} are not known")
    short = [(gpu, need) for gpu in judged if _active(gpu) < (need := _needed(host, gpu))]
    if short:
        evidence = some(_short(gpu, need) for gpu, need in short)
        disabled = (host.facts.driver.parameters or {}).get("NvLinkDisable") == "1"
        evidence += "; NVreg_NvLinkDisable=1" if disabled else ""
        if not host.several:
            # A container or a virtual machine with one GPU has its links off.
            what = "NVLinks of the only GPU are off"
            return trouble("note", "nvlink-alone", what, evidence)
        what = "NVLinks are down"
        return trouble("failure", "nvlink", what, evidence, gpus=names_of(g for g, _ in short))
    counts = sorted({_active(gpu) for gpu in judged} - {0})
    if not counts:
        return None
    return ok("every NVLink is up", f"{' or '.join(map(str, counts))} links for each GPU")


def _active(gpu: Gpu) -> int:
    return sum(1 for link in gpu.nvlinks or () if link.active)


def _needed(host: Host, gpu: Gpu) -> int:
    # A card's bridge is an option, but not half a bridge.
    kind, active = host.kind(gpu), _active(gpu)
    if kind.nvlinks is None:
        return len(gpu.nvlinks or ()) if active else 0
    return kind.nvlinks if kind.sxm or active else 0


def _short(gpu: Gpu, need: int) -> str:
    down = [str(link.index) for link in gpu.nvlinks or () if link.active is False]
    links = f" (down: {some(down)})" if down and len(down) < need else ""
    return f"GPU {name_of(gpu)}: {_active(gpu)} of {need}{links}"


def generation(host: Host) -> Answer | None:
    """Judge whether links run at the GPU's generation of NVLink."""
    slow, seen = [], set()
    for gpu in host.gpus:
        wanted = host.kind(gpu).nvlink_version
        versions = {x.version for x in gpu.nvlinks or () if x.active and x.version is not None}
        seen |= versions
        if wanted is not None and any(version < wanted for version in versions):
            slow.append(f"GPU {name_of(gpu)}: {min(versions)} instead of {wanted}")
    if slow:
        what = "NVLinks run as an older generation"
        return trouble("warning", "nvlink-version", what, some(slow))
    return ok(f"NVLink {', '.join(map(str, sorted(seen)))}") if seen else None


def link_errors(host: Host) -> Answer | None:
    """Judge how often links had to repeat or recover."""
    known = [
        (gpu, link.index, link.errors)
        for gpu in host.gpus
        for link in gpu.nvlinks or ()
        if link.errors is not None
    ]
    if not known:
        return None
    most = host.thresholds.limits.nvlink_errors
    bad = [(gpu, index, errors) for gpu, index, errors in known if errors > most]
    if bad:
        shown = some(f"GPU {name_of(gpu)} link {index}: {errors}" for gpu, index, errors in bad)
        names = names_of(dict.fromkeys(gpu for gpu, _, _ in bad))
        return trouble("warning", "nvlink-errors", "NVLinks with many errors", shown, gpus=names)
    return ok("few NVLink errors", f"{sum(errors for _, _, errors in known)} on all links")


def peers(host: Host) -> Answer | None:
    """Judge whether every GPU reads and writes every other's memory."""
    if not host.several:
        return None
    pairs = once(host.facts.pairs)
    if not pairs:
        return unknown(host, "pairs", "whether GPUs reach each other is not known")
    shut = [p for p in pairs if {p.read, p.write} - {"ok", None}]
    if not shut:
        return ok("every GPU reaches every other", f"{len(pairs)} pairs")
    reasons = sorted({str(word) for p in shut for word in (p.read, p.write) if word != "ok"})
    evidence = f"{len(shut)} of {len(pairs)} pairs: {host.pair_names(shut)}; {some(reasons)}"
    if host.wired or any(host.kind(gpu).sxm for gpu in host.gpus):
        return trouble("failure", "p2p", "GPUs do not reach each other's memory", evidence)
    what = "these GPUs cannot reach each other's memory over PCIe"
    return trouble("missing", "p2p-pcie", what, evidence)


def atomics(host: Host) -> Answer | None:
    """Judge atomic operations between GPUs, which only NVLink and some bridges carry."""
    known = [pair for pair in once(host.facts.pairs) if pair.atomics is not None]
    if not host.several or not known:
        return None
    shut = [pair for pair in known if pair.atomics != "ok"]
    if shut:
        evidence = f"{len(shut)} of {len(known)} pairs: {host.pair_names(shut)}"
        what = "no atomic operations between GPUs"
        return trouble("note", "p2p-atomics", what, evidence)
    return ok("atomic operations work between all GPUs", f"{len(known)} pairs")


def switches(host: Host) -> Answer | None:
    """Judge whether all NVSwitches of the board are on the bus."""
    seen = host.facts.fabric.switches
    expected = host.kind(host.gpus[0]).nvswitches if host.gpus else None
    if expected is None or len(host.gpus) < WHOLE_BOARD or host.inside:
        return None
    if seen is None:
        return unknown(host, "fabric.switches", "the NVSwitches are not known")
    evidence = f"{len(seen)} of {expected}"
    if len(seen) < expected:
        return trouble("failure", "nvswitch", "NVSwitches are missing on the PCIe bus", evidence)
    return ok("all NVSwitches are there", evidence)


def manager(host: Host) -> Answer | None:
    """Judge the service without which NVSwitches carry nothing."""
    fabric = host.facts.fabric
    running = fabric.manager_running
    # A virtual machine may have its GPUs' fabric managed from outside.
    if not host.switched or host.inside or not (fabric.switches or running):
        return None
    unit = f"service {fabric.unit or 'not known'}"
    if running is None:
        return unknown(host, "fabric.manager_running", "whether Fabric Manager runs is not known")
    if not running and fabric.manager_installed is False:
        what = "Fabric Manager is not installed, and these GPUs are joined by NVSwitches"
        version = (host.facts.driver.version or "the driver's version").partition(".")[0]
        return trouble("missing", "fabric-manager-missing", what, unit, major=version)
    if not running:
        return trouble("failure", "fabric-manager", "Fabric Manager does not run", unit)
    own, driver = fabric.manager_version, host.facts.driver.version
    evidence = f"Fabric Manager {own or '?'}, driver {driver or '?'}; {unit}"
    if own and driver and own != driver:
        what = "Fabric Manager is not of the driver's version, and will not start with it"
        return trouble("failure", "fabric-manager-version", what, evidence, version=driver)
    return ok("Fabric Manager runs", evidence)


def fabric_state(host: Host) -> Answer | None:
    """Judge whether every GPU was taken into the NVLink fabric."""
    known = [g for g in host.gpus if g.fabric_state not in (None, "not-supported")]
    expected = [g for g in host.gpus if host.kind(g).fabric and host.switched]
    if not known and expected:
        return unknown(
            host, "gpus.fabric_state", "whether GPUs joined the NVLink fabric is not known"
        )
    if not known:
        return None
    out = [
        g
        for g in known
        if g.fabric_state != "completed" or g.fabric_status not in (None, "success")
    ]
    if out:
        shown = some(
            f"GPU {name_of(g)}: {g.fabric_state} {g.fabric_status or ''}".strip() for g in out
        )
        return trouble("failure", "fabric-state", "GPUs are not in the NVLink fabric", shown)
    ill = [g for g in known if g.fabric_health]
    if ill:
        shown = some(f"GPU {name_of(g)}: {' '.join(g.fabric_health or ())}" for g in ill)
        return trouble("warning", "fabric-health", "the NVLink fabric is degraded", shown)
    return ok("every GPU is in the NVLink fabric", f"{len(known)} GPUs")


def multicast(host: Host) -> Answer | None:
    """Judge whether NVSwitches can add and spread for the GPUs, and may."""
    able = [gpu for gpu in host.gpus if host.kind(gpu).multicast and host.several]
    if not able or not host.switched:
        return None
    off = [
        f"{k}={v}" for k, v in (host.facts.environment or {}).items() if v.lower() in OFF.get(k, ())
    ]
    lacking = [gpu for gpu in able if gpu.multicast is False]
    if lacking:
        what = "GPUs say that they cannot multicast: kernels use slower routes"
        return trouble("warning", "multicast", what, f"GPUs {names_of(lacking)}")
    if off:
        what = "NVLink multicast is switched off here"
        names = " ".join(word.partition("=")[0] for word in off)
        return trouble("note", "multicast-off", what, some(off), variables=names)
    if any(gpu.multicast is None for gpu in able):
        return unknown(host, "gpus.multicast", "whether GPUs can multicast is not known")
    return ok("GPUs can multicast")


CHECKS = (
    Check("nvlink", "every NVLink of every GPU is up", nvlink),
    Check("nvlink-version", "links run at the GPU's generation of NVLink", generation),
    Check("nvlink-errors", "links have few errors", link_errors),
    Check("p2p", "every GPU reads and writes every other's memory", peers),
    Check("p2p-atomics", "atomic operations work between GPUs", atomics),
    Check("nvswitch", "all NVSwitches of the board are there", switches),
    Check("fabric-manager", "Fabric Manager runs, in the driver's version", manager),
    Check("fabric-state", "every GPU is in the NVLink fabric, and that is well", fabric_state),
    Check("multicast", "GPUs can multicast, and it is not switched off", multicast),
)
