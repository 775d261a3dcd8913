"""What CUDA's driver library says: attributes that NVML lacks, and GPUs where pynvml is missing.

Only questions are asked: cuInit makes no context, and no memory or multicast object is created.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tdstack.doctor.facts import Driver
from tdstack.doctor.hardware import Gpu, Pair
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

# CUdevice_attribute and CUdevice_P2PAttribute of cuda.h.
MAJOR, MINOR, MULTICAST, DMA_BUF = 75, 76, 132, 124
P2P_ACCESS, P2P_ATOMICS = 2, 3


def libcuda(_: Tree, load: Callable[[str], Any] = ctypes.CDLL) -> Part:
    """Load libcuda.so.1 and ask it."""
    try:
        library = load("libcuda.so.1")
    except OSError as error:
        return Part(why={"gpus.multicast": f"libcuda.so.1 cannot be loaded: {error}"})
    return look(library)


def look(library: Any) -> Part:
    """Ask the library for its CUDA, its GPUs, their attributes and pairs."""
    part = Part()
    if status := library.cuInit(0):
        # cuda.h: 100 no device, 803 the kernel's driver is of another version, 999 unknown.
        part.unknown("gpus.multicast", f"cuInit answers {status}")
        part.sections["driver@cuda"] = Driver(cuda=_version(library))
        return part
    part.sections["driver@cuda"] = Driver(present=True, cuda=_version(library))
    count = _number(library.cuDeviceGetCount) or 0
    devices = {at: _number(library.cuDeviceGet, at) for at in range(count)}
    known = {at: device for at, device in devices.items() if device is not None}
    part.sections["gpus@cuda"] = tuple(_gpu(library, at, device) for at, device in known.items())
    part.sections["pairs@cuda"] = tuple(
        _pair(library, (a, known[a]), (b, known[b])) for a in known for b in known if a != b
    )
    return part


def _gpu(library: Any, index: int, device: int) -> Gpu:
    def attribute(number: int) -> int | None:
        return _number(library.cuDeviceGetAttribute, number, device)

    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(64)
    size = ctypes.c_size_t()
    named = library.cuDeviceGetName(name, 256, device) == 0
    placed = library.cuDeviceGetPCIBusId(bus, 64, device) == 0
    sized = library.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0
    major, minor = attribute(MAJOR), attribute(MINOR)
    multicast, dma_buf = attribute(MULTICAST), attribute(DMA_BUF)
    return Gpu(
        index=index,
        name=name.value.decode("utf-8", "replace") if named else None,
        pci=bus.value.decode("ascii", "replace").lower() if placed else None,
        memory=size.value if sized else None,
        capability=None if major is None or minor is None else f"{major}.{minor}",
        multicast=None if multicast is None else multicast == 1,
        dma_buf=None if dma_buf is None else dma_buf == 1,
    )


def _pair(library: Any, first: tuple[int, int], second: tuple[int, int]) -> Pair:
    def can(attribute: int) -> str | None:
        value = _number(library.cuDeviceGetP2PAttribute, attribute, first[1], second[1])
        return None if value is None else "ok" if value else "not-supported"

    access = can(P2P_ACCESS)
    return Pair(a=first[0], b=second[0], read=access, write=access, atomics=can(P2P_ATOMICS))


def _version(library: Any) -> str | None:
    version = _number(library.cuDriverGetVersion)
    return None if version is None else f"{version // 1000}.{version % 1000 // 10}"


def _number(function: Any, *arguments: int) -> int | None:
    value = ctypes.c_int()
    return value.value if function(ctypes.byref(value), *arguments) == 0 else None
