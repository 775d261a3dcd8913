"""Which node of how many, and where they meet: every launcher's variables, and their errors."""

from __future__ import annotations

import pytest

from smoke_tests.rendezvous import Given, RendezvousError, expand_hosts, resolve

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}
POD = {
    "JOB_COMPLETION_INDEX": "2",
    "HOSTNAME": "smoke-test-2",
    "SMOKE_SERVICE": "smoke",
    "SMOKE_NODES": "3",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k not in names}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("a,b", ["a", "b"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("gpu[8-11]", ["gpu8", "gpu9", "gpu10", "gpu11"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("r[1-2]n[3-4]-ib", ["r1n3-ib", "r1n4-ib", "r2n3-ib", "r2n4-ib"]),
        ("n[1-1]", ["n1"]),
    ],
)
def test_node_lists(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    ["", "a,", "gpu[1-", "gpu1]", "gpu[3-1]", "gpu[]", "gpu[a-b]", "g[[1]]", "gpu[1-99999999]",
     "a[1-1000]b[1-1000]"],
)  # fmt: skip
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(RendezvousError, match=r"hosts"):
        expand_hosts(text)


def test_a_slurm_step_is_found_by_its_own_nodes() -> None:
    found = resolve(SLURM, Given(), 8)
    assert (found.nodes, found.node, found.address) == (2, 1, "gpu03")
    assert found.source == "Slurm job 4711"
    assert found.torchrun() == [
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=8",
        "--master-addr=gpu03",
        f"--master-port={20000 + (4711 * 16 + 2) % 10000}",
        "--max-restarts=0",
    ]
    other = resolve(SLURM | {"SLURM_STEP_ID": "3"}, Given(), 8)
    assert other.port != found.port


def test_a_job_of_one_node_needs_no_srun() -> None:
    batch = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    found = resolve(batch, Given(), 2)
    assert (found.nodes, found.node, found.address) == (1, 0, "127.0.0.1")


def test_an_indexed_job_is_found_by_its_service() -> None:
    found = resolve(POD, Given(), 8)
    assert (found.nodes, found.node, found.address) == (3, 2, "smoke-test-0.smoke")


def test_what_is_given_goes_first() -> None:
    given = Given(nodes=5, node=4, ranks_per_node=3, address="fd00::1", port=1234)
    for environment in (SLURM, POD, {}):
        found = resolve(environment, given, 8)
        assert (found.nodes, found.node, found.ranks_per_node) == (5, 4, 3)
        assert (found.address, found.port) == ("fd00::1", 1234)


def test_a_host_alone_needs_nothing() -> None:
    found = resolve({}, Given(), 2)
    assert (found.nodes, found.node, found.ranks_per_node) == (1, 0, 2)
    assert found.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "given", "says"),
    [
        (without(SLURM, "SLURM_NODEID"), Given(), "SLURM_NODEID is not set"),
        (without(SLURM, "SLURM_STEP_ID"), Given(), "srun --ntasks-per-node=1"),
        (SLURM | {"SLURM_LOCALID": "1"}, Given(), "srun --ntasks-per-node=1"),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu03"}, Given(), "names 1 of 2 nodes"),
        (SLURM | {"SLURM_NODEID": "2"}, Given(), "no node 2 among 2"),
        (SLURM | {"SLURM_NODEID": "x"}, Given(), "no number: 'x'"),
        (without(POD, "SMOKE_NODES"), Given(), "SMOKE_NODES"),
        (without(POD, "SMOKE_SERVICE"), Given(), "--service"),
        (POD | {"HOSTNAME": "elsewhere"}, Given(), "'elsewhere' is not <job>-2"),
        (POD | {"SMOKE_NODES": "2"}, Given(), "no node 2 among 2"),
        ({}, Given(nodes=2, node=0), "--master-addr"),
        ({}, Given(nodes=2, address="a"), "--node-rank"),
        ({}, Given(port=70000), "no port 70000"),
        ({}, Given(ranks_per_node=0), "1 nodes of 0 ranks"),
    ],
)
def test_every_gap_is_named(environment: dict[str, str], given: Given, says: str) -> None:
    with pytest.raises(RendezvousError) as raised:
        resolve(environment, given, 8)
    assert says in str(raised.value)
