"""The operating system, its memory, limits, clock, and the variables that the stack listens to."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
from collections.abc import Callable

from tdstack.doctor.facts import UNLIMITED, Clock, Limits, Memory, Os
from tdstack.doctor.probes.inside import container_kind
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree, number

# Only what bears on the stack is kept: a command line can hold addresses and passwords.
CMDLINE = re.compile(
    r"^(iommu|intel_iommu|amd_iommu|iommu\..+|pci|pcie_.+|hugepages|hugepagesz|swiotlb|"
    r"default_hugepagesz|transparent_hugepage|numa_balancing|nvidia.*|nouveau\..+|clocksource|"
    r"(rd\.driver|modprobe|module)[._]blacklist|systemd\.unified_cgroup_hierarchy|cgroup.*|"
    r"isolcpus|nohz_full|selinux|apparmor|lockdown|vfio.*)(=.*)?$"
)
VARIABLES = re.compile(
    r"^(CUDA_(VISIBLE_DEVICES|DEVICE_MAX_CONNECTIONS|DEVICE_ORDER|MODULE_LOADING|LAUNCH_BLOCKING|"
    r"MPS_\w+|CACHE_DISABLE|FORCE_PTX_JIT)|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES|"
    r"REQUIRE_CUDA|DISABLE_REQUIRE|GDRCOPY|MOFED)|NVSHMEM_(?!.*SESSION_ID)\w+|NCCL_\w+|"
    r"GLOO_SOCKET_IFNAME|TORCH_SYMM_MEM_\w+|TRITON_\w+|TDSTACK_\w+|SGL_USE_TP_OVERLAP|"
    r"UCX_(TLS|NET_DEVICES)|OMP_NUM_THREADS)$"
)
# That they are set can matter, where they lead says more of the host than is needed.
FOLDERS = ("LD_LIBRARY_PATH", "LD_PRELOAD")
STA_UNSYNC, STA_NANO = 0x0040, 0x2000
SERVICES = ("chronyd", "ntpd", "ntpd-rs", "ntp-daemon", "openntpd", "systemd-timesyn", "ptp4l")


def system(tree: Tree) -> Part:
    """Read the distribution, the kernel and the C library."""
    release = tree.text("etc/os-release") or tree.text("usr/lib/os-release") or ""
    named = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "") if _has_confstr() else ""
    cmdline = tree.text("proc/cmdline")
    words = None if cmdline is None else [word for word in cmdline.split() if CMDLINE.match(word)]
    found = Os(
        distro=_unquoted(named.get("ID")),
        distro_version=_unquoted(named.get("VERSION_ID")),
        kernel=tree.text("proc/sys/kernel/osrelease"),
        arch=platform.machine() or None,
        glibc=glibc.split()[-1] if glibc.startswith("glibc") else None,
        python=platform.python_version(),
        cmdline=None if words is None else " ".join(words),
        root=os.geteuid() == 0,
        cpus=len(os.sched_getaffinity(0)),
    )
    held = {name: text for name, text in tree.environment.items() if VARIABLES.match(name)}
    held |= {name: "set" for name in FOLDERS if tree.environment.get(name)}
    return Part({"os": found, "environment": held})


def memory(tree: Tree) -> Part:
    """Read /proc/meminfo and what /sys says of pages and nodes."""
    sizes: dict[str, int | None] = {}
    for line in tree.lines("proc/meminfo") or ():
        name, _, rest = line.partition(":")
        count = number(rest.split()[0] if rest.split() else None)
        sizes[name] = count * 1024 if count is not None and rest.endswith("kB") else count
    chosen = re.search(r"\[(\w+)\]", tree.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    nodes = tree.names("sys/devices/system/node")
    balancing = tree.number("proc/sys/kernel/numa_balancing")
    found = Memory(
        total=sizes.get("MemTotal"),
        available=sizes.get("MemAvailable"),
        hugepages_total=sizes.get("HugePages_Total"),
        hugepages_free=sizes.get("HugePages_Free"),
        hugepage_size=sizes.get("Hugepagesize"),
        transparent_hugepages=chosen.group(1) if chosen else None,
        numa_nodes=None if nodes is None else sum(bool(re.match(r"node\d+$", n)) for n in nodes),
        numa_balancing=None if balancing is None else balancing > 0,
    )
    return Part({"memory": found})


def limits(tree: Tree) -> Part:
    """Read /proc/self/limits: those of this process, as its children have them too."""
    lines = tree.lines("proc/self/limits")
    if lines is None:
        return Part(why={"limits": "/proc/self/limits cannot be read"})
    rows = {line[:25].strip(): line[25:].split() for line in lines}

    def bound(row: str, at: int) -> int | None:
        words = rows.get(row, [])
        if len(words) <= at:
            return None
        return UNLIMITED if words[at] == "unlimited" else number(words[at])

    memlock, nofile, stack = "Max locked memory", "Max open files", "Max stack size"
    return Part(
        {
            "limits": Limits(
                memlock_soft=bound(memlock, 0),
                memlock_hard=bound(memlock, 1),
                nofile_soft=bound(nofile, 0),
                nofile_hard=bound(nofile, 1),
                stack_soft=bound(stack, 0),
                stack_hard=bound(stack, 1),
            )
        }
    )


class Timex(ctypes.Structure):
    """struct timex of adjtimex(2), 64-bit."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),  # more than the kernel writes
    )


def adjtimex() -> Timex:
    """Ask the kernel for its clock's state; with modes 0 nothing is set. Raises: OSError."""
    state = Timex()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(state)) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state


def clock(tree: Tree, ask: Callable[[], Timex] = adjtimex) -> Part:
    """Ask the kernel whether its clock is synchronised, and look for who keeps it so."""
    running = tree.processes()
    source = next((name for name in SERVICES if name in running), None)
    if source is None and container_kind(tree) == "":
        source = ""
    part = Part()
    if source is None:
        part.unknown("clock.source", "a container does not see its host's processes")
    try:
        state = ask()
    except (OSError, AttributeError) as error:
        part.unknown("clock", f"adjtimex: {error}")
        part.sections["clock"] = Clock(source=source)
        return part
    synchronised = not state.status & STA_UNSYNC
    scale = 1e-9 if state.status & STA_NANO else 1e-6
    part.sections["clock"] = Clock(
        synchronised=synchronised,
        offset_s=state.offset * scale if synchronised else None,
        max_error_s=state.maxerror * 1e-6 if synchronised else None,
        source=source,
    )
    if not synchronised:
        part.unknown("clock.offset_s", "nothing sets the clock, so its offset is not known")
        part.unknown("clock.max_error_s", "nothing sets the clock, so its error is not known")
    return part


def _unquoted(text: str | None) -> str | None:
    try:
        return "".join(shlex.split(text)) if text is not None else None
    except ValueError:
        return text


def _has_confstr() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
