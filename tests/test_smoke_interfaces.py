"""Which interface and family lead to another host: real routes, in a namespace of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from smoke_tests.interfaces import Link, interface_of, link_to
from tests.conftest import ROOT

# Two pairs of virtual interfaces: one with IPv4 alone, one with IPv6 alone.
SCRIPT = """
set -eu
ip link set lo up
ip link add four type veth peer name far4
ip link add six type veth peer name far6
for name in four far4 six far6; do ip link set "$name" up; done
ip addr add 192.0.2.1/24 dev four
ip -6 addr add 2001:db8::1/64 dev six nodad
exec "$0" -c "
import json
from dataclasses import astuple
from smoke_tests.interfaces import link_to
found = [astuple(link_to(host, 29500)) for host in ('192.0.2.9', '2001:db8::9', '127.0.0.1')]
try:
    link_to('198.51.100.1', 29500)
except OSError as error:
    found.append(error.strerror)
print(json.dumps(found))"
"""


def test_the_route_says_which_interface_and_family() -> None:
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("network namespaces need root, unshare and ip")
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", SCRIPT, sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"no virtual interfaces here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    four, six, loopback, nowhere = json.loads(done.stdout)
    assert four == ["four", "AF_INET", "192.0.2.1"]
    assert six == ["six", "AF_INET6", "2001:db8::1"]
    assert loopback == ["lo", "AF_INET", "127.0.0.1"]
    assert nowhere == "Network is unreachable"


def test_the_loopback_is_found_by_name_and_by_address() -> None:
    found = link_to("127.0.0.1", 1)
    assert found.address == "127.0.0.1"
    assert found.settings()["NCCL_SOCKET_IFNAME"] == found.interface


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.7", "eth0"),
        ("2001:db8:0:0::7", "ib0"),  # one address in two spellings
        ("10.0.0.8", ""),
    ],
)
def test_an_address_is_compared_by_its_value(address: str, name: str) -> None:
    known = {"eth0": frozenset({"10.0.0.7", "fe80::1"}), "ib0": frozenset({"2001:db8::7"})}
    assert interface_of(address, known) == name


def test_nothing_is_set_where_no_interface_has_the_address() -> None:
    assert Link("", "AF_INET", "10.0.0.8").settings() == {}
