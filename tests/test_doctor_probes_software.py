"""The doctor's probes of containers, engines, networks and tdstack itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.interfaces import addresses
from tdstack.doctor.facts import UNLIMITED, Interface, Route
from tdstack.doctor.probes import (
    container,
    engines,
    inside,
    installed,
    network,
)
from tdstack.doctor.probes.tree import Tree
from tests.engine_stores import docker_daemon
from tests.host_trees import plant

OVERLAY = (
    "1 0 0:1 / / rw master:1 - overlay overlay rw,lowerdir=/var/lib/containerd/"
    "io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs\n"
)


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({}, {}, ""),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
        ({"proc/self/cgroup": "0::/kubepods.slice/x\n"}, {}, "kubernetes"),
        ({"proc/1/environ": b"PATH=/\0container=lxc\0"}, {}, "lxc"),
        ({"proc/1/environ": b"container=systemd-nspawn\0"}, {}, "other"),
        ({"proc/self/mountinfo": OVERLAY}, {}, "other"),
        ({"proc/self/mountinfo": "1 0 0:1 / / rw - ext4 /dev/vda rw\n"}, {}, ""),
        ({"proc/self/cgroup": f"12:cpu:/docker/{'0a' * 32}\n"}, {}, "docker"),
        ({"proc/self/cgroup": f"0::/system.slice/docker-{'0a' * 32}.scope\n"}, {}, "docker"),
        ({"proc/self/cgroup": "0::/system.slice/docker.service\n"}, {}, ""),
    ],
)
def test_whose_container_this_is(
    tmp_path: Path, files: dict[str, str | bytes], variables: dict[str, str], expected: str
) -> None:
    assert inside.container_kind(plant(tmp_path, files, **variables)) == expected


CDI = """\
---
cdiVersion: 0.5.0
containerEdits:
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: all
kind: nvidia.com/gpu
"""


def test_containers_toolkit_and_cdi(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "usr/bin/nvidia-ctk": "",
            "etc/nvidia-container-runtime/config.toml": "[nvidia-container-cli]\n"
            'no-cgroups = true\n[nvidia-container-runtime]\nmode = "cdi"\n',
            "etc/cdi/nvidia.yaml": CDI,
            "etc/cdi/readme.txt": "x",
            "var/run": "-> ../run",
            "run/cdi/other.json": '{"cdiVersion":"0.5.0",\n"kind": "vendor.com/net",\n'
            '"devices": [\n{"name": "a"}]}',
        },
    )
    found = container.container(tree).sections["container"]
    assert (found.inside, found.kind, found.cgroup) == (False, "", 2)
    assert found.memory_limit == UNLIMITED
    assert (found.toolkit, found.toolkit_mode, found.toolkit_no_cgroups) == (True, "cdi", True)
    mine, other = found.cdi
    assert (mine.file, mine.kind, mine.devices, mine.driver) == (
        *("/etc/cdi/nvidia.yaml", "nvidia.com/gpu", 2, "550.54.14"),
    )
    # /var/run is /run: the same file is told once.
    assert (other.kind, other.driver) == ("vendor.com/net", None)


def test_a_broken_toolkit_configuration_is_a_reason(tmp_path: Path) -> None:
    part = container.container(plant(tmp_path, {container.TOOLKIT: "mode = = x"}))
    assert part.sections["container"].toolkit_mode is None
    assert "config.toml" in part.why["container.toolkit_mode"]


INFO = {
    "Driver": "overlay2",
    "DockerRootDir": "/data/docker",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "CDISpecDirs": ["/etc/cdi"],
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "CgroupDriver": "systemd",
}


def test_docker_is_asked_by_its_api(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"usr/bin/docker": "", "usr/bin/podman": ""}
    tree = plant(tmp_path, files | {"data/docker/x": ""}, HOME="/h")
    part = engines.engines(tree, lambda: ({"Version": "28.2.2"}, INFO))
    docker, podman, *_ = part.sections["container.engines"]
    assert (docker.works, docker.version, docker.storage) == (True, "28.2.2", "overlay2")
    assert (docker.root, docker.runtimes) == ("/data/docker", ("nvidia", "runc"))
    assert (docker.cdi, docker.rootless, docker.cgroup_driver) == (True, True, "systemd")
    assert (podman.name, podman.installed, podman.version) == ("podman", True, None)


@pytest.mark.engine
def test_a_real_daemon_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_daemon(tmp_path / "docker") as environment:
        monkeypatch.setenv("DOCKER_HOST", environment["DOCKER_HOST"])
        part = engines.engines(Tree(Path("/"), dict(os.environ)))
        found = part.sections["container.engines"][0]
        assert (found.name, found.works, found.root) == ("docker", True, f"{tmp_path}/docker/data")
        assert found.version
        assert found.storage
        assert "runc" in found.runtimes
        assert found.rootless is False


def test_podman_and_buildah_keep_images_where_their_settings_say(tmp_path: Path) -> None:
    conf = '[storage]\ndriver = "overlay"\ngraphroot = "/big/images"\n'
    tree = plant(
        tmp_path,
        {"usr/bin/buildah": "", "own.conf": conf, "odd.conf": "x = = y"},
        CONTAINERS_STORAGE_CONF="/own.conf",
        HOME="/h",
    )
    odd = Tree(tmp_path, {"CONTAINERS_STORAGE_CONF": "/odd.conf", "HOME": "/h"})
    usual = (
        "/var/lib/containers/storage" if os.geteuid() == 0 else "/h/.local/share/containers/storage"
    )
    for asked, root in ((tree, "/big/images"), (odd, usual)):
        listed = engines.engines(asked).sections["container.engines"]
        assert next(engine.root for engine in listed if engine.name == "buildah") == root


def test_a_dockers_folder_on_another_host_is_not_measured_here(tmp_path: Path) -> None:
    tree = plant(tmp_path, {}, DOCKER_HOST="tcp://elsewhere:2375")
    part = engines.engines(tree, lambda: ({"Version": "28.2.2"}, INFO))
    assert part.sections["container.engines"][0].root is None
    assert "another host" in part.why["spaces.engine"]


def test_a_docker_that_does_not_answer_or_is_not_there(tmp_path: Path) -> None:
    def silent() -> Any:
        raise ConnectionError("Connection refused")

    def lacking() -> Any:
        raise ImportError("docker")

    there = plant(tmp_path / "a", {"usr/bin/docker": ""})
    found = engines.engines(there, silent).sections["container.engines"][0]
    assert (found.installed, found.works, found.why) == (True, False, "Connection refused")
    part = engines.engines(there, lacking)
    assert part.sections["container.engines"][0].works is None
    assert "pip install docker" in part.why["container.engines.docker"]
    none = engines.engines(Tree(tmp_path / "b", {}), silent).sections["container.engines"][0]
    assert (none.installed, none.works) == (False, False)


ANY = "0" * 32


def test_interfaces_families_and_routes(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "sys/class/net/eth0/flags": "0x1003\n",
            "sys/class/net/eth0/operstate": "up\n",
            "sys/class/net/eth0/mtu": "9000\n",
            "sys/class/net/eth0/speed": "100000\n",
            "sys/class/net/eth0/device/x": "",
            "sys/class/net/lo/flags": "0x9\n",
            "sys/class/net/lo/operstate": "unknown\n",
            "sys/class/net/ib0/flags": "0x1002\n",
            "sys/class/net/ib0/speed": "-1\n",
            "sys/class/net/bonding_masters": "\n",
            "proc/net/if_inet6": f"fe80{ANY[4:]} 02 40 20 80 eth0\n"
            f"20010db8{ANY[8:]} 03 40 00 80 ib0\nodd\n",
            "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU\n"
            "eth0 00000000 0100000A 0003 0 0 0 00000000 0\n"
            "eth0 0000000A 00000000 0001 0 0 0 00FFFFFF 0\n",
            "proc/net/ipv6_route": f"{ANY} 00 {ANY} 00 {ANY} ffffffff 1 0 00200200 lo\n"
            f"{ANY} 00 {ANY} 00 fe80{ANY[4:]} 400 1 0 00000003 eth0\n",
        },
    )
    found = network.network(tree, {"eth0": "10.0.0.2", "lo": "169.254.1.1"}.get).sections["network"]
    assert found.interfaces == (
        Interface("eth0", True, False, False, 9000, 100000, ("AF_INET",)),
        Interface("ib0", False, False, True, None, None, ("AF_INET6",)),
        Interface("lo", True, True, True, None, None, ()),
    )
    assert found.default_routes == (Route("AF_INET", "eth0"), Route("AF_INET6", "eth0"))
    assert (found.bootstrap_interface, found.bootstrap_family) == ("eth0", "AF_INET")


def test_without_a_default_route_nothing_leads_out() -> None:
    four = ["Iface Destination", "eth0 0000000A 00000000 0001 0 0 0 00FFFFFF 0"]
    assert network.default_routes(four, []) == ()
    assert network.default_routes(None, None) is None


def test_the_first_default_route_is_the_cheapest_of_ipv4() -> None:
    line = "{} 00000000 0100000A 0003 0 0 {} 00000000 0"
    four = ["Iface", line.format("eth1", 600), line.format("eth0", 100)]
    six = [f"{ANY} 00 {ANY} 00 fe80{ANY[4:]} 1 1 0 00000003 eth2"]
    assert network.default_routes(four, six) == (
        *(Route("AF_INET", "eth0"), Route("AF_INET", "eth1"), Route("AF_INET6", "eth2")),
    )


def test_this_hosts_families_are_what_the_smoke_tests_find() -> None:
    found = network.network(Tree(Path("/"), {})).sections["network"].interfaces
    families = {interface.name: interface.families for interface in found}
    assert families["lo"]
    for name, own in addresses().items():
        far = {a for a in own if not a.startswith(("fe80:", "169.254."))}
        assert ("AF_INET6" in families[name]) == any(":" in address for address in far)
        assert ("AF_INET" in families[name]) == any(":" not in address for address in far)


RECORD = "share/tdstack/install.json"
VERSION: dict[str, str | bytes] = {
    f"versions/ab12/{RECORD}": '{"cuda": "12.4", "archs": ["sm_90"], "driver_floor": "525.60.13"}',
    "versions/ab12/bin/python": "",
}
IN_USE: dict[str, str | bytes] = {"current": "-> versions/ab12"}


def test_a_prefix_in_use_is_whole(tmp_path: Path) -> None:
    tree = plant(tmp_path, VERSION | IN_USE)
    found = installed.prefix_state(Tree(Path("/"), {}), str(tmp_path))
    assert (found.where, found.state, found.problems) == ("prefix", "whole", ())
    assert (found.key, found.cuda, found.archs) == ("ab12", "12.4", ("sm_90",))
    assert found.driver_floor == "525.60.13"
    assert installed.prefix_state(tree, "versions/ab12").state == "whole"
    assert installed.prefix_state(tree, "current").key == "ab12"


@pytest.mark.parametrize(
    ("files", "state", "problem"),
    [
        ({}, "absent", ""),
        ({".tdstack/prefix.json": "{}"}, "absent", ""),  # all was uninstalled, or is in the making
        (VERSION, "broken", "no link"),
        ({"current": "-> versions/gone"}, "broken", "nowhere"),
        ({"versions/ab12/x": "", **IN_USE}, "broken", "has no share/tdstack/install.json"),
        ({"bin/python": ""}, "broken", "no prefix of"),
        ({f"versions/ab12/{RECORD}": "{}", **IN_USE}, "broken", "bin/python"),
        ({RECORD: "[1]", "bin/python": ""}, "broken", "not an object"),
        ({RECORD: "[" * 100_000}, "broken", "not JSON"),
    ],
)
def test_a_prefix_is_absent_or_broken(
    tmp_path: Path, files: dict[str, str | bytes], state: str, problem: str
) -> None:
    found = installed.prefix_state(plant(tmp_path, {f"p/{k}": v for k, v in files.items()}), "/p")
    assert (found.where, found.path, found.state) == ("prefix", "/p", state)
    assert problem in " ".join(found.problems or ())


def test_an_image_of_tdstack_knows_itself(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"opt/tdstack/manifest.json": '{"cuda": "12.8", "archs": 3}'})
    found = installed.installed(tree).sections["tdstack"]
    assert (found.where, found.state) == ("container", "whole")
    assert (found.cuda, found.archs) == ("12.8", None)
    assert installed.installed(Tree(tmp_path / "x", {})).sections["tdstack"].where == "none"
