"""Hosts on which something is wrong with the driver."""

from __future__ import annotations

from dataclasses import replace

from tdstack.doctor.facts import Driver, Facts, Module, Space
from tests.made_hosts.good import b200_open, cards, h100_sxm
from tests.made_hosts.parts import (
    DOCKER,
    GIB,
    driver,
    engines,
    modules,
    spaces,
    spec,
)


def old_driver() -> Facts:
    """Return two cards with a driver older than every CUDA line."""
    bad = replace(cards(), label="synthetic: a driver older than CUDA 12")
    held = driver("470.256.02", "11.4", "proprietary")
    return replace(bad, driver=held, container=engines(DOCKER, cdi=(spec(held.version or ""),)))


def mismatch() -> Facts:
    """Return an H100 node after an update of the driver without a reboot."""
    held = Driver(True, "550.90.07", "550.127.08", kind="open", nvml="mismatch")
    return replace(
        h100_sxm(),
        label="synthetic: the driver was updated, not rebooted",
        driver=held,
        gpus=None,
        pairs=None,
        why={"gpus": "NVML: Driver/library version mismatch", "pairs": "NVML: mismatch"},
    )


def not_loaded() -> Facts:
    """Return two cards after an update of the kernel without a module for it."""
    return replace(
        cards(),
        label="synthetic: no kernel module for this kernel",
        driver=Driver(False, None, None, nvml="not-loaded", devices=()),
        libraries={"libnvidia-ml.so.1": True, "libcuda.so.1": True},
        gpus=None,
        pairs=None,
        modules=(Module("nouveau", ""),),
    )


def ill_driver() -> Facts:
    """Return two cards whose driver answers with an error, beside a read-only /dev/shm."""
    bad = replace(cards(), label="synthetic: the driver answers with an error")
    return replace(
        bad,
        driver=replace(bad.driver, nvml="error"),
        spaces=spaces(shm=Space("/dev/shm", "tmpfs", 512 * GIB, 511 * GIB, False)),
        gpus=None,
        pairs=None,
        why={"driver": "NVML: Unknown Error", "gpus": "NVML: Unknown Error"},
    )


def half_driver() -> Facts:
    """Return two cards with the kernel module, but without the driver's library."""
    return replace(
        cards(),
        label="synthetic: the driver's library is missing",
        driver=Driver(True, "550.90.07", None, None, "open", "no-library"),
        gpus=None,
        pairs=None,
        why={"gpus": "there is no libnvidia-ml.so.1"},
    )


def b200() -> Facts:
    """Return a node with a B200 board, the wrong kind of kernel modules, and one not loaded."""
    bad, version = b200_open(), "570.133.20"
    return replace(
        bad,
        label="synthetic: B200 with proprietary kernel modules",
        driver=driver(version, "12.8", "proprietary"),
        fabric=replace(bad.fabric, manager_version=version),
        container=engines(DOCKER, cdi=(spec(version),)),
        modules=modules("nvidia_uvm"),
    )
