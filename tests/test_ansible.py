"""The Ansible role for real: over ssh to two hosts of their own, and on this one, with an image.

One roll-out is followed through: the first run, the second, an upgrade that a host's old driver
stops, the way back, and the end.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkouts import FEW_KERNELS, TABLE
from tests.fleet import Fleet, commit, fill_stores, node_path, source_of, wheels_of
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import OPTIONS, Host, buildah_host, load_tiny, tiny_plan
from tests.ssh_hosts import SshHost, ssh_hosts

__all__ = ["plain_registry"]
pytestmark = pytest.mark.engine

LOCAL = "control"


@dataclass
class Site:
    """Two hosts over ssh and this one, and the source that is deployed on them."""

    fleet: Fleet
    hosts: list[SshHost]
    source: Path
    root: Path  # of the local one
    image: Host

    def state(self, name: str) -> dict[str, Any]:
        """Return the record that a host keeps."""
        if name == LOCAL:
            text = (self.root / "state.json").read_text()
        else:
            text = self.host(name).run("cat", "/opt/tdstack/state.json")
        data: dict[str, Any] = json.loads(text)
        return data

    def host(self, name: str) -> SshHost:
        return next(h for h in self.hosts if h.name == name)

    def releases(self) -> dict[str, str]:
        return {name: self.state(name)["current"]["id"] for name in self.fleet.hosts}

    def prefix_in_use(self, name: str) -> str:
        """Return the prefix's version by what `current` points to."""
        if name == LOCAL:
            return os.readlink(self.root / "prefix/current")
        return self.host(name).run("readlink", "/opt/tdstack/prefix/current").strip()

    def publish(self, registry: RunningRegistry) -> None:
        """Push a tiny image of the source as it is, and write the cluster file that names it."""
        plan = tiny_plan.__wrapped__("12.4", self.source)
        shutil.rmtree(self.image.folder / "layout", ignore_errors=True)
        load_tiny(plan, self.image.engine, self.image.folder)
        at = ["--registry", f"{registry.host}/fleet/tdstack"]
        file = str(self.fleet.variables["tdstack_cluster_file"])
        pushed = self.image.invoke("push", *OPTIONS, *at, "--cluster", file, root=self.source)
        assert pushed.code == 0, pushed.err
        self.image.wipe()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, plain_registry: RunningRegistry
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fleet")
    (shared := folder / "shared").mkdir()
    source = source_of(folder / "source")
    (source / TABLE).write_text(FEW_KERNELS)
    commit(source, "few kernels")
    names = ["gpu01", "gpu02"]
    fill_stores(shared, [LOCAL, "common"])
    with (
        ssh_hosts(folder / "hosts", names, shared) as hosts,
        buildah_host(folder) as image,
    ):
        root = folder / "local"
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "tdstack_root": str(root / "opt"),
            "tdstack_cluster_dir": str(root / "etc"),
            "tdstack_fact_dir": str(root / "facts"),
            "tdstack_engine": "buildah",
            "tdstack_pull_image": True,
            "tdstack_environment": {
                **image.environment,
                **node_path(),
                "TDSTACK_CACHE": str(shared / LOCAL),
            },
        }
        common = {
            "tdstack_become": False,
            "tdstack_source": str(source),
            "tdstack_control_dir": str(folder / "archives"),
            "tdstack_cluster_file": str(folder / "cluster.env"),
            "tdstack_image_options": ["--arch", "sm_80"],
            "tdstack_install_options": ["--arch", "sm_80"],
            "tdstack_wheelhouse_archive": str(wheels_of(folder)),
            "tdstack_environment": {
                **node_path(),
                # One for both, as on a cluster: they install at once, into the same path.
                "TDSTACK_CACHE": "/run/shared/common",
            },
            "tdstack_install_packages": False,
            "tdstack_free_bytes": 1_000_000_000,
            "tdstack_pull_image": False,
            "tdstack_require_gpu": False,
            # No GPU here: what the doctor finds is recorded, and must not end the roll-out.
            "tdstack_doctor": "report",
            "tdstack_facts_dir": str(folder / "facts"),
            "tdstack_smoke_place": "prefix",
            "tdstack_smoke_tier": "import",
            "tdstack_serial": "100%",
        }
        named = {host.name: dict(host.variables) for host in hosts}
        fleet = Fleet(folder, {LOCAL: local, **named}, common)
        site = Site(fleet, hosts, source, root / "opt", image)
        site.publish(plain_registry)
        yield site


def test_a_roll_out_and_the_way_back(site: Site, plain_registry: RunningRegistry) -> None:
    fleet = site.fleet
    everyone = list(fleet.hosts)
    # Asked what it would do, it says so, and leaves nothing.
    dry = fleet.play("site.yml", "--check")
    assert dry.code == 0, dry.out
    assert all(dry.count("changed").values())
    assert not site.root.parent.exists()
    assert "tdstack" not in site.hosts[0].run("ls", "/opt", "/etc")

    first = fleet.play("site.yml")
    assert first.code == 0, first.out
    assert all(first.count("changed").values())
    old = site.releases()
    assert len(set(old.values())) == 1
    prefixes_then = {name: site.prefix_in_use(name) for name in everyone}
    assert site.state(LOCAL)["current"]["image"]["ref"] in site.image.names()
    cluster_then = (site.root.parent / "etc/cluster.env").read_text()
    assert cluster_then == Path(fleet.variables["tdstack_cluster_file"]).read_text()

    assert "FAILED" not in first.out
    for name in everyone:
        facts = json.loads((fleet.folder / f"facts/{name}.json").read_text())
        assert facts["os"]["python"]
    report = json.loads((site.root / "current/smoke/run.jsonl").read_text().splitlines()[0])
    assert "prefix" in json.dumps(report)

    second = fleet.play("site.yml")
    assert second.code == 0, second.out
    assert second.count("changed") == dict.fromkeys(everyone, 0), second.out

    verified = fleet.play("verify.yml")
    assert verified.code == 0, verified.out
    assert verified.count("changed") == dict.fromkeys(everyone, 0)

    # An upgrade, one host at a time; the second one's driver is too old for the line.
    with (site.source / "tdstack/verify/finding.py").open("a") as file:
        file.write("# a newer release\n")
    commit(site.source, "second")
    site.publish(plain_registry)
    site.host("gpu01").run("echo 470.57.02 >/run/driver")
    fleet.hosts["gpu01"]["tdstack_driver_version_file"] = "/run/driver"
    stopped = fleet.play("site.yml", tdstack_serial=1)
    assert stopped.code != 0
    assert "the driver of gpu01 is too old for CUDA 12.4" in stopped.out
    assert "expected: 525.60.13 or newer" in stopped.out
    assert "remedy: upgrade the driver on this host" in stopped.out
    now = site.releases()
    assert now[LOCAL] != old[LOCAL]
    assert (now["gpu01"], now["gpu02"]) == (old["gpu01"], old["gpu02"])
    assert site.prefix_in_use(LOCAL) != prefixes_then[LOCAL]
    assert (site.root.parent / "etc/cluster.env").read_text() != cluster_then
    assert {host for host, n in stopped.count("changed").items() if n} == {LOCAL}
    mixed = fleet.play("verify.yml")
    assert mixed.code != 0
    assert "the hosts run 2 different releases" in mixed.out

    # A host that fails after the change goes back by itself.
    options = ["--limit", "gpu02", "-e", "tdstack_smoke_tier=gpu"]
    failed = fleet.play("site.yml", *options)
    assert failed.code != 0
    assert "the tier gpu needs a GPU" in failed.out or "cannot run here" in failed.out, failed.out
    assert f"gpu02 is back on {old['gpu02']}" in failed.out
    assert site.releases() == now
    assert site.prefix_in_use("gpu02") == prefixes_then["gpu02"]

    back = fleet.play("rollback.yml")
    assert back.code == 0, back.out
    assert site.releases() == old
    assert {name: site.prefix_in_use(name) for name in everyone} == prefixes_then
    assert (site.root.parent / "etc/cluster.env").read_text() == cluster_then
    assert {host for host, n in back.count("changed").items() if n} == {LOCAL}

    # Both images, though the record names one of them no more.
    gone = fleet.play("uninstall.yml", tdstack_uninstall_images=True)
    assert gone.code == 0, gone.out
    assert site.image.names() == set(), gone.out
    assert not site.root.exists()
    assert "tdstack" not in site.hosts[0].run("ls", "/opt", "/etc", "/etc/ansible/facts.d")
