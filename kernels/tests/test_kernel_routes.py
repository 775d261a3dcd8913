"""Which interface and address family NVSHMEM's ranks meet on: the default route, read off /proc."""

from __future__ import annotations

import pytest

from gemm_allreduce.transports import nvshmem
from gemm_allreduce.transports.nvshmem import default_route, default_settings

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
NEAR = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
ETH0 = "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
BOND = "bond0\t00000000\t010200C0\t0003\t0\t0\t50\t00000000\t0\t0\t0\n"
DOWN = "eth9\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"
ZERO = "0" * 32
ENS6 = f"{ZERO} 00 {ZERO} 00 fd000000000000000000000000000001 00000400 2 0 00000003     ens6\n"
NEAR6 = f"fd{ZERO[2:]} 40 {ZERO} 00 {ZERO} 00000100 1 0 00000001     ens6\n"
REFUSES = f"{ZERO} 00 {ZERO} 00 {ZERO} 00000001 1 0 00200200       lo\n"
REFUSED = REFUSES.replace("00200200", "00000201")


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "route"),
    [
        (HEAD + NEAR + ETH0, ENS6, ("eth0", "AF_INET")),
        (HEAD + ETH0 + BOND, "", ("bond0", "AF_INET")),
        (HEAD + DOWN + ETH0, "", ("eth0", "AF_INET")),
        (HEAD, REFUSES + NEAR6 + ENS6, ("ens6", "AF_INET6")),
        (HEAD, REFUSED + ENS6, ("ens6", "AF_INET6")),
        (HEAD + NEAR, ENS6, ("ens6", "AF_INET6")),
        ("", ENS6, ("ens6", "AF_INET6")),
        (HEAD + NEAR, REFUSES + NEAR6, ("", "")),
        ("", "", ("", "")),
    ],
)
def test_the_default_route(ipv4: str, ipv6: str, route: tuple[str, str]) -> None:
    assert default_route(ipv4, ipv6) == route


def test_hosts_with_ipv6_alone_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvshmem, "_default_route", lambda: default_route("", ENS6))
    several = default_settings(one_host=False)
    assert several["NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY"] == "AF_INET6"
    assert several["NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"] == "ens6"
    assert "NVSHMEM_REMOTE_TRANSPORT" not in several
    one = default_settings(one_host=True)
    assert one["NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"] == "lo"
    assert one["NVSHMEM_REMOTE_TRANSPORT"] == "none"


def test_without_a_default_route_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvshmem, "_default_route", lambda: ("", ""))
    assert set(default_settings(one_host=False)) == {
        "NVSHMEM_BOOTSTRAP", "NVSHMEM_CUMEM_GRANULARITY"
    }  # fmt: skip
