"""Containers, and engines, with which something is wrong."""

from __future__ import annotations

from dataclasses import replace

from tdstack.doctor.facts import Driver, Engine, Facts, Installed, Os, Space
from tdstack.doctor.hardware import NvLink
from tests.made_hosts.good import cards, container
from tests.made_hosts.parts import DOCKER, GIB, alike, engines, infiniband, modules, spaces, spec


def small_container() -> Facts:
    """Return a container as plain `docker run --gpus all` starts it, on a host with a limit."""
    bad = replace(container(), label="synthetic: a container with 64 MiB of /dev/shm")
    shm = Space("/dev/shm", "tmpfs", 64 * 2**20, 64 * 2**20, True)
    return replace(
        bad,
        spaces=spaces(shm=shm, tmp=Space("/tmp", "overlay", 400 * GIB, 300 * 2**20, True)),
        limits=replace(bad.limits, memlock_soft=65536, memlock_hard=65536, nofile_soft=1024),
    )


def broken_container() -> Facts:
    """Return a container that got a part of the driver, and that somebody changed."""
    bad = replace(container(), label="synthetic: a changed container with a part of the driver")
    readonly = Space("/tmp", "overlay", 400 * GIB, 300 * GIB, False)
    return replace(
        bad,
        environment={"NVIDIA_DRIVER_CAPABILITIES": "compute", "NVSHMEM_DISABLE_NVLS": "1"},
        spaces=spaces(tmp=readonly),
        tdstack=replace(
            bad.tdstack, state="broken", problems=("triton: changed",), verify="failed"
        ),
    )


def hidden_container() -> Facts:
    """Return a container without device nodes, whose image is for other GPUs and drivers."""
    bad = replace(container(), label="synthetic: a container without nvidia-uvm, of another line")
    archs = ("sm_100",)
    return replace(
        bad,
        driver=replace(bad.driver, devices=("nvidia0", "nvidiactl")),
        tdstack=replace(bad.tdstack, cuda="13.0", driver_floor="580.65.06", archs=archs),
        environment={},
    )


def blind_container() -> Facts:
    """Return a container that was started without GPUs."""
    return replace(
        container(),
        label="synthetic: a container without GPUs",
        driver=Driver(False, devices=(), nvml="no-library"),
        gpus=(),
        pairs=(),
        modules=modules(),
    )


def old_engine() -> Facts:
    """Return two cards on a system of old, whose docker does not know GPUs."""
    bad = replace(cards(), label="synthetic: CentOS 7 with an old docker")
    docker = Engine("docker", True, True, "18.09.9", "devicemapper", runtimes=("runc",))
    system = Os("centos", "7", "3.10.0-1160.el7.x86_64", "x86_64", "2.17", "3.11.9", root=True)
    return replace(bad, os=system, container=replace(engines(docker), cgroup=1))


def no_toolkit() -> Facts:
    """Return two cards whose engines were not told of GPUs."""
    bad = replace(cards(), label="synthetic: podman without CDI, no container toolkit")
    podman = Engine("podman", True, True, "4.9.3", "vfs", cdi=True, cgroup_driver="systemd")
    return replace(bad, container=engines(DOCKER, podman, toolkit=False))


def stale_cdi() -> Facts:
    """Return two cards whose CDI file is of the driver before; a prefix that somebody changed."""
    bad = replace(cards(), label="synthetic: CDI of another driver; a broken prefix")
    prefix = Installed("prefix", "/opt/tdstack", "broken", ("cuda/core: missing",), cuda="12.4")
    return replace(bad, container=engines(DOCKER, cdi=(spec("535.54.03"),)), tdstack=prefix)


def untold_runtime() -> Facts:
    """Return two cards behind a docker that the toolkit was not registered with; no rights."""
    bad = replace(cards(), label="synthetic: docker without NVIDIA's runtime")
    return replace(
        bad,
        container=engines(replace(DOCKER, runtimes=("runc",))),
        driver=replace(bad.driver, nvml="no-permission"),
    )


def lone_container() -> Facts:
    """Return a container with one GPU, whose links are off, and none of the host's RDMA devices."""
    bad, off = container(), tuple(NvLink(index, False) for index in range(18))
    held = (bad.gpus or ())[:1]
    facts = replace(bad, label="synthetic: a container with one H100", gpus=held, pairs=())
    facts = replace(facts, rdma=tuple(replace(card, usable=False) for card in infiniband(2)))
    parameters = {"NvLinkDisable": "1"}
    return alike(
        replace(facts, driver=replace(facts.driver, parameters=parameters)),
        nvlinks=off,
        fabric_state="not-supported",
        multicast=False,
    )
