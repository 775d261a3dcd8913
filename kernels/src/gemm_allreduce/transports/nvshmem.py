"""Ranks as processes over NVSHMEM, through nvshmem4py: one or several processes per GPU.

NVSHMEM starts from a unique id that travels over the group (gloo is enough): no MPI, no NCCL.
Its settings that fail on ordinary hosts by default get a value here unless they have one.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import GroupRanks, Heap, numbered

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


_IS_INITIALIZED = 2  # nvshmemx_init_status_t: from here on, with or without MPG


class NvshmemTransport(GroupRanks):
    """One heap per process of the group.

    An NVSHMEM that the process has started before is used, and not ended. One that this class
    starts lives until the process ends: NVSHMEM cannot be started twice.

    Args:
        group: the ranks, in their order.
        device: this process's GPU; None is the current one.

    Raises:
        RuntimeError: nvshmem4py is missing, or NVSHMEM does not start.
    """

    def __init__(self, group: ProcessGroup, device: torch.device | str | None = None) -> None:
        import torch

        super().__init__(group)
        self.device = numbered(device)
        torch.cuda.set_device(self.device)
        self._core = _core()
        self._start()
        count = int(self._core.n_pes())
        if count != self.world_size:
            raise ValueError(
                f"NVSHMEM runs with {count} processes, the group has {self.world_size}: its "
                "allocations are collective over all of them"
            )
        self._pes = self.gather(int(self._core.my_pe()))
        self._buffers: list[Any] = []

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed symmetric memory.

        Raises: RuntimeError when it cannot be had, or a peer's cannot be reached by loads and
        stores.
        """
        import torch

        problem, buffer = "", None
        try:
            buffer = self._core.buffer(nbytes)
            self._buffers.append(buffer)
        except Exception as error:  # nvshmem4py's errors share no base class
            problem = (
                f"NVSHMEM cannot give {nbytes} bytes: {error}; with NVSHMEM_DISABLE_CUDA_VMM=1 "
                "set NVSHMEM_SYMMETRIC_SIZE to more"
            )
        self.gather_problems(problem)
        own = torch.utils.dlpack.from_dlpack(buffer).view(torch.uint8)[:nbytes]
        own.zero_()
        torch.cuda.synchronize(self.device)
        addresses = [self._address(buffer, rank) for rank in range(self.world_size)]
        unreachable = [rank for rank, address in enumerate(addresses) if not address]
        if any(lists := self.gather(unreachable)):
            raise RuntimeError(
                f"memory of peers cannot be reached by loads and stores, by rank: {lists}; "
                "all ranks must be on one NVLink or PCIe P2P domain"
            )
        return Heap(own, tuple(addresses))

    def close(self) -> None:
        """Free the heaps, after all ranks have come here."""
        self.leave()
        while self._buffers:
            self._core.free(self._buffers.pop())

    def _address(self, buffer: Any, rank: int) -> int:
        if rank == self.rank:
            return int(buffer.handle)
        try:
            return int(self._core.get_peer_buffer(buffer, self._pes[rank]).handle)
        except Exception:  # how nvshmem4py says that there is no pointer
            return 0

    def _start(self) -> None:
        from cuda.core import Device

        if _started(self._core):
            return
        hosts = self.gather(socket.gethostname())
        for name, value in default_settings(len(set(hosts)) == 1).items():
            os.environ.setdefault(name, value)
        uid = self._core.get_unique_id(empty=self.rank != 0)
        first = self.gather(bytes(uid._data.tobytes()) if self.rank == 0 else None)[0]
        if self.rank != 0:
            import numpy

            uid._data[:] = numpy.frombuffer(first, dtype=uid._data.dtype)
        device = Device(self.device.index)
        device.set_current()
        try:
            self._core.init(
                device=device,
                uid=uid,
                rank=self.rank,
                nranks=self.world_size,
                initializer_method="uid",
            )
        except Exception as error:
            raise RuntimeError(
                f"NVSHMEM did not start on rank {self.rank}: {error}; NVSHMEM_DEBUG=INFO says more"
            ) from error


def default_settings(one_host: bool) -> dict[str, str]:
    """Return NVSHMEM's settings for hosts as they are.

    Its own defaults look for `eth0` and IPv4, for InfiniBand even on a single host, and let the
    heap grow by 512 MiB at a time.
    """
    interface, family = _loopback() if one_host else _default_route()
    settings = {
        "NVSHMEM_BOOTSTRAP": "UID",
        "NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY": family,
        "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": interface,
        "NVSHMEM_CUMEM_GRANULARITY": str(2 << 20),
    }
    if one_host:
        settings["NVSHMEM_REMOTE_TRANSPORT"] = "none"
    return {name: value for name, value in settings.items() if value}


def default_route(ipv4: str, ipv6: str) -> tuple[str, str]:
    """Return interface and address family of the default route, both empty where there is none.

    ``ipv4`` and ``ipv6`` are the texts of /proc/net/route and /proc/net/ipv6_route; IPv4 goes
    first, and in a family the route with the lowest metric. Pure.
    """
    found = []
    for line in ipv4.splitlines()[1:]:
        name, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if destination == mask == "0" * 8 and _usable(flags):
            found.append((int(metric), name, "AF_INET"))
    if not found:
        for line in ipv6.splitlines():
            destination, length, _, _, _, metric, _, _, flags, name = line.split()
            if destination == "0" * 32 and length == "00" and _usable(flags):
                found.append((int(metric, 16), name, "AF_INET6"))
    return min(found)[1:] if found else ("", "")


def _usable(flags: str) -> bool:
    # The kernel lists a route that refuses everything as a default route over lo.
    up, reject = 0x1, 0x200
    return int(flags, 16) & (up | reject) == up


def _default_route() -> tuple[str, str]:
    texts = []
    for name in ("route", "ipv6_route"):
        try:
            texts.append(Path("/proc/net", name).read_text())
        except OSError:  # a kernel without this family
            texts.append("")
    return default_route(*texts)


def _loopback() -> tuple[str, str]:
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return "lo", "AF_INET6"
    return "lo", "AF_INET"


def _core() -> Any:
    try:
        import nvshmem.core as core
    except ImportError as error:
        raise RuntimeError(
            f"nvshmem4py cannot be imported ({error}); install nvshmem4py-cu12 or -cu13, "
            "or use another transport"
        ) from error
    return core


def _started(core: Any) -> bool:
    core.get_version()  # loads the library, which the status needs
    return int(core.init_status()) >= _IS_INITIALIZED
