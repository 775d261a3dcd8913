"""Hosts on which something is wrong with a GPU."""

from __future__ import annotations

from dataclasses import replace

from tdstack.doctor.facts import Facts
from tdstack.doctor.hardware import Gpu, Pcie, Xid
from tests.made_hosts.good import cards, h20, h100_sxm
from tests.made_hosts.parts import GIB, alike, bridges, gpus, one, pairs


def bad_memory() -> Facts:
    """Return two cards, one with new memory errors, one with old ones and without ECC."""
    bad = replace(cards(), label="synthetic: uncorrected ECC errors, a row to be remapped")
    errors = {"ecc_uncorrected_volatile": 2, "ecc_uncorrected_aggregate": 2}
    bad = one(bad, 0, remap_pending=True, **errors)
    bad = one(bad, 1, ecc=False, ecc_pending=False, ecc_uncorrected_aggregate=1)
    grave = Xid("gpu", "0000:1b:00.0", 48, 1, 4000.0, "DBE (double bit error)")
    return replace(bad, xids=(grave, Xid("gpu", "0000:1b:00.0", 63, 1, 4000.0)))


def worn_memory() -> Facts:
    """Return two cards, one without a spare row left; both with errors in their past."""
    bad = replace(cards(), label="synthetic: no spare row left; errors long ago")
    bad = one(alike(bad, ecc_uncorrected_aggregate=3), 1, remap_failed=True)
    return replace(bad, xids=(Xid("gpu", "0000:2b:00.0", 64, 1, 900000.0),))


def fallen_off() -> Facts:
    """Return an H100 node on which one GPU has fallen off the bus, and a switch had a fault."""
    bad = h100_sxm()
    fault = Xid("switch", "0000:07:00.0", 20034, 3, 500.0, "Fatal, Link 30 LTSSM Fault Up")
    return replace(
        bad,
        label="synthetic: a GPU has fallen off the bus",
        gpus=(*(bad.gpus or ())[:6], Gpu(6, error="gpu-is-lost")),
        pairs=pairs(6),
        xids=(Xid("gpu", "0000:8b:00.0", 79, 1, 610.0), fault),
    )


def hot() -> Facts:
    """Return an H20 node with heat, low power limits, other programs, and persistence off."""
    bad = alike(
        replace(h20(), label="synthetic: hot, limited, busy, persistence off"), persistence=False
    )
    slow = ("hw-slowdown", "hw-thermal-slowdown")
    bad = one(bad, 2, throttle=slow, temperature=86.0, clock_sm=810, processes=1)
    bad = one(bad, 4, throttle=("sw-thermal-slowdown",), temperature=80.0, power_limit=350.0)
    program = Xid("gpu", "0000:3b:00.0", 31, 12, 3600.0, "MMU Fault")
    return replace(bad, driver=replace(bad.driver, persistenced=False), xids=(program,))


def slowed() -> Facts:
    """Return two cards held down by a setting, on which one process alone may run."""
    bad = replace(cards(), label="synthetic: clocks set low, exclusive processes")
    bad = alike(bad, throttle=("applications-clocks-setting",), clock_sm=1095)
    unheard = Xid("gpu", "0000:1b:00.0", 999, 1, 60.0)
    return replace(one(bad, 0, compute_mode="exclusive-process"), xids=(unheard,))


def mixed() -> Facts:
    """Return a node with cards of three types, one of them prohibited."""
    bad = cards()
    other = gpus(4, "NVIDIA L40S", "8.9", 48 * GIB, nvlinks=(), pcie_generation=4)
    old = gpus(5, "Tesla V100-PCIE-32GB", "7.0", 32 * GIB, nvlinks=(), compute_mode="prohibited")
    return replace(
        bad,
        label="synthetic: cards of three types, one too old",
        gpus=(*(bad.gpus or ()), *other[2:], old[4]),
        pairs=pairs(5),
        pcie=Pcie(bridges(5), "off", 0, 5),
    )


def mig() -> Facts:
    """Return two cards, one split."""
    bad = replace(cards(), label="synthetic: MIG on")
    return one(bad, 1, mig=True, mig_devices=7)


def none_shown() -> Facts:
    """Return cards that the driver does not show: all are given to virtual machines."""
    bad = replace(cards(), label="synthetic: no GPU shown")
    return replace(bad, gpus=(), pairs=(), driver=replace(bad.driver, devices=()))
