"""NVIDIA's driver and other kernel modules by the kernel's files, and libraries by loading them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

from tdstack.doctor.facts import Driver, Module
from tdstack.doctor.hardware import Gpu
from tdstack.doctor.probes.inside import container_kind, process_runs
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

VERSION = re.compile(r"\s(\d{3,}\.\d+(?:\.\d+)?)(?=\s|$)")
# Those that concern GPUs, RDMA, device assignment, and containers' file systems.
CONCERNED = re.compile(
    r"^(nvidia|nouveau|nova_core|gdrdrv|nv_peer_mem|ib_|rdma_|iw_|mlx|irdma|bnxt_re|efa$|vfio|"
    r"iommufd|fuse$|overlay$|squashfs$|xpmem|knem)"
)
NODES = re.compile(r"^(nvidia|gdrdrv$|infiniband$|dxg$)")
NODE = re.compile(r"^(nvidia\d+|dxg)$")
LIBRARIES = (
    *("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"),
    *("libibverbs.so.1", "libmlx5.so.1", "librdmacm.so.1", "libgdrapi.so.2", "libfabric.so.1"),
)


def driver(tree: Tree) -> Part:
    """Read what /proc and /sys say of NVIDIA's driver and of the modules that concern the stack."""
    part = Part()
    first = (tree.text("proc/driver/nvidia/version") or "").partition("\n")[0]
    stated = VERSION.search(first)
    loaded = tree.has("proc/driver/nvidia") or tree.has("sys/module/nvidia")
    readable = tree.has("proc/modules") or tree.has("sys/module")
    kind = "open" if "Open Kernel Module" in first else "proprietary" if stated else None
    nodes = tree.names("dev")
    part.sections["driver"] = Driver(
        present=loaded if loaded or readable else None,
        version=stated.group(1) if stated else tree.text("sys/module/nvidia/version"),
        kind=kind,
        parameters=_parameters(tree),
        devices=None if nodes is None else tuple(filter(NODES.match, nodes)),
        persistenced=process_runs(tree, "nvidia-persistenced"),
    )
    if not loaded:
        part.unknown("driver.version", "the kernel module nvidia is not loaded")
    if part.sections["driver"].persistenced is None:
        part.unknown("driver.persistenced", "a container does not see its host's processes")
    modules = _modules(tree)
    if modules is None:
        part.unknown("modules", "neither /proc/modules nor /sys/module can be read")
    else:
        part.sections["modules"] = modules
    gpus = _gpus(tree)
    if gpus is not None:
        part.sections["gpus@proc"] = gpus
    return part


def libraries(_: Tree, load: Callable[[str], Any] = ctypes.CDLL) -> Part:
    """Try to load each library, by the dynamic linker's own search."""
    found, part = {}, Part()
    for name in LIBRARIES:
        try:
            load(name)
            found[name] = True
        except OSError as error:
            found[name] = False
            # It is there and something that it needs is not.
            if name not in str(error).partition(":")[0]:
                part.unknown(f"libraries.{name}", str(error))
    part.sections["libraries"] = found
    return part


def _parameters(tree: Tree) -> dict[str, str] | None:
    lines = tree.lines("proc/driver/nvidia/params")
    if lines is None:
        return None
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): text.strip() for name, mark, text in pairs if mark}


def _modules(tree: Tree) -> tuple[Module, ...] | None:
    listed = tree.lines("proc/modules")
    folders = tree.names("sys/module")
    if listed is None and folders is None:
        return None
    names = {line.split()[0] for line in listed or () if line}
    # What is built into the kernel is in /sys alone.
    names |= set(folders or ())
    return tuple(
        Module(name, tree.text(f"sys/module/{name}/version") or "")
        for name in sorted(names)
        if CONCERNED.match(name)
    )


def _gpus(tree: Tree) -> tuple[Gpu, ...] | None:
    folder = "proc/driver/nvidia/gpus"
    names = tree.names(folder)
    nodes = tree.names("dev")
    if nodes is not None and container_kind(tree) and not any(map(NODE.match, nodes)):
        return ()  # /proc shows a container the GPUs of its host, whether they were passed or not
    if names is None:
        return None
    found = []
    for name in names:
        lines = tree.lines(f"{folder}/{name}/information") or []
        rows = {key.strip(): text.strip() for key, _, text in (x.partition(":") for x in lines)}
        found.append(Gpu(name=rows.get("Model"), uuid=rows.get("GPU UUID"), pci=name.lower()))
    return tuple(found)
