"""The agent that judges a node, against an API server over TLS: what the node says afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tdstack.kubernetes.api import ApiError, NodeApi
from tdstack.kubernetes.options import given_of, server_of
from tests.kube_api import KubeApi, kube_api, node, slow, status
from tests.scripted import Asked, Reply

DIGEST = "0123456789ab" + "c" * 52
IMAGE = f"registry.example/team/tdstack@sha256:{DIGEST}"
GOOD = {"findings": [{"check": "driver", "severity": "ok", "what": "", "remedy": ""}]}
OLD_DRIVER = {
    "check": "driver floor",
    "severity": "failure",
    "what": "the driver is older than the line's floor",
    "evidence": "470.82, floor 525.60.13",
    "remedy": "install driver 525.60.13 or later",
}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
OURS = {"key": "tdstack.dev/unfit", "value": "driver-floor", "effect": "NoSchedule"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "credentials") as running:
        running.add(node("n1", GPU_TAINT, pool="gpu"))
        yield running


@dataclass
class Running:
    """An agent's process and what it has said."""

    process: subprocess.Popen[str]
    log: Path
    state: Path
    report: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, true: Callable[[], bool], limit_s: float = 15.0) -> None:
        end = time.monotonic() + limit_s
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def end(self) -> float:
        """Tell it to end; return the seconds that took."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0, self.said
        return time.monotonic() - begin


@dataclass
class Start:
    """Starts agents whose only check prints a report that the test writes."""

    api: KubeApi
    folder: Path
    running: list[Running] = field(default_factory=list)

    def __call__(
        self,
        findings: dict[str, Any] | None = None,
        *options: str,
        code: int = 0,
        command: str = "",
    ) -> Running:
        here = self.folder / str(len(self.running))
        here.mkdir()
        report = here / "report.json"
        report.write_text(json.dumps(GOOD if findings is None else findings))
        code_file = here / "code"
        code_file.write_text(str(code))
        checks = command or f"sh -c 'cat {report}; exit $(cat {code_file})'"
        state = here / "state"
        arguments = ["--node", "n1", "--image", IMAGE, "--line", "cu124", "--state", str(state)]
        arguments += ["--credentials", str(self.api.folder), "--server", self.api.url]
        arguments += ["--check", f"doctor={checks}", "--interval-s", "0.3", *options]
        with (here / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tdstack.kubernetes.agent", *arguments],
                env={**os.environ, "https_proxy": "http://127.0.0.1:9"},
                stderr=log,
                text=True,
            )
        self.running.append(Running(process, here / "log", state, report))
        return self.running[-1]


@pytest.fixture
def start(api: KubeApi, tmp_path: Path) -> Iterator[Start]:
    starting = Start(api, tmp_path)
    yield starting
    for one in starting.running:
        one.process.kill()
        one.process.wait()
        assert "Traceback" not in one.said


@contextmanager
def as_kubectl(api: KubeApi, folder: Path, kubectl: str = "kubectl") -> Iterator[list[str]]:
    """Yield kubectl's command line for the server."""
    yield [
        kubectl,
        f"--server={api.url}",
        f"--certificate-authority={api.folder / 'ca.crt'}",
        f"--token={api.token}",
        f"--cache-dir={folder / 'kubectl'}",
    ]


def labels(api: KubeApi) -> dict[str, str]:
    return dict(api.nodes["n1"]["metadata"]["labels"])


def noted(api: KubeApi) -> dict[str, str]:
    return dict(api.nodes["n1"]["metadata"]["annotations"])


def taints(api: KubeApi) -> list[dict[str, str]]:
    return list(api.nodes["n1"]["spec"].get("taints") or [])


def test_a_good_node_gets_its_labels_and_no_taint(api: KubeApi, start: Start) -> None:
    agent = start()
    agent.until(lambda: (agent.state / "reported").exists())
    assert labels(api) == {
        "pool": "gpu",
        "tdstack.dev/ready": "true",
        "tdstack.dev/line": "cu124",
        "tdstack.dev/image": "0123456789ab",
    }
    assert taints(api) == [GPU_TAINT]
    agent.until(lambda: agent.said.count("says so already") >= 2)
    assert api.asked.count("PATCH") == 1  # and nothing is written again


def test_a_bad_node_is_tainted_with_the_reason_and_freed_when_it_is_mended(
    api: KubeApi, start: Start
) -> None:
    agent = start({"findings": [OLD_DRIVER]}, code=3)
    agent.until(lambda: OURS in taints(api))
    assert taints(api) == [GPU_TAINT, OURS]
    assert labels(api)["tdstack.dev/ready"] == "false"
    told = noted(api)["tdstack.dev/verdict"]
    assert "older than the line's floor" in told
    assert "install driver 525.60.13 or later" in told
    assert "install driver" in agent.said
    agent.report.write_text(json.dumps(GOOD))
    agent.report.with_name("code").write_text("0")
    agent.until(lambda: labels(api)["tdstack.dev/ready"] == "true")
    assert taints(api) == [GPU_TAINT]
    assert noted(api) == {}


def test_a_taint_that_a_person_set_stays(api: KubeApi, start: Start) -> None:
    held = {**OURS, "value": "held-back"}
    forever = {**OURS, "effect": "NoExecute"}
    api.add(node("n1", held, forever))
    good = start()
    good.until(lambda: (good.state / "reported").exists())
    assert taints(api) == [held, forever]
    good.end()
    bad = start({"findings": [OLD_DRIVER]}, code=1)
    bad.until(lambda: labels(api)["tdstack.dev/ready"] == "false")
    assert taints(api) == [held, forever]


def test_an_agent_that_comes_anew_knows_the_taint_as_its_own(api: KubeApi, start: Start) -> None:
    first = start({"findings": [OLD_DRIVER]}, code=1)
    first.until(lambda: OURS in taints(api))
    first.process.kill()
    second = start()
    second.until(lambda: labels(api)["tdstack.dev/ready"] == "true")
    assert taints(api) == [GPU_TAINT]


def test_taints_can_be_left_to_people_and_findings_be_tolerated(api: KubeApi, start: Start) -> None:
    shy = start({"findings": [OLD_DRIVER]}, "--taint", "off", code=1)
    shy.until(lambda: labels(api).get("tdstack.dev/ready") == "false")
    assert taints(api) == [GPU_TAINT]
    shy.end()
    mild = start({"findings": [OLD_DRIVER]}, "--tolerate", "clock,driver floor", code=1)
    mild.until(lambda: labels(api)["tdstack.dev/ready"] == "true")


def test_a_check_that_hangs_makes_the_node_unfit_and_is_ended(
    api: KubeApi, start: Start, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = f"sh -c 'sleep 600 & echo $! >>{pids}; wait'"
    agent = start(None, "--limit-s", "0.5", command=command)
    agent.until(lambda: any(taint["value"] == "doctor-hangs" for taint in taints(api)))
    first = int(pids.read_text().split()[0])
    agent.until(lambda: not Path(f"/proc/{first}").exists() or _is_zombie(first))


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize(
    "command",
    ["sh -c 'echo no JSON; exit 1'", "/no/such/program", "sh -c 'kill -9 $$'", "echo '{}'"],
)
def test_a_check_that_breaks_says_nothing_about_the_node(
    api: KubeApi, start: Start, command: str
) -> None:
    bad = start({"findings": [OLD_DRIVER]}, code=1)
    bad.until(lambda: OURS in taints(api))
    bad.end()
    agent = start(command=command)
    agent.until(lambda: (agent.state / "reported").exists())
    assert labels(api)["tdstack.dev/ready"] == "false"
    assert "broke" in agent.said
    assert taints(api) == [GPU_TAINT, OURS]  # what was found before stays


def test_two_who_change_a_node_at_once_both_succeed(api: KubeApi, start: Start) -> None:
    other = {"key": "maintenance", "value": "soon", "effect": "NoSchedule"}
    patches = 0

    def meanwhile(asked: Asked) -> None:
        nonlocal patches
        if asked.method == "PATCH":
            patches += 1
            if patches == 1:
                api.add(node("n1", GPU_TAINT, other))

    api.before = meanwhile
    agent = start({"findings": [OLD_DRIVER]}, code=1)
    agent.until(lambda: OURS in taints(api))
    assert taints(api) == [GPU_TAINT, other, OURS]
    assert patches == 2
    assert "409" not in agent.said


def refusing(code: int, **headers: str) -> Callable[[], Reply]:
    return lambda: status(code, "refused by the test", **headers)


@pytest.mark.parametrize(
    "fault", [refusing(429, Retry_After="1"), refusing(500), refusing(503), lambda: None]
)
def test_a_server_that_fails_for_a_while_is_asked_again(
    api: KubeApi, start: Start, fault: Callable[[], Reply | None]
) -> None:
    api.faults = [fault, None, fault]
    agent = start(None, "--interval-s", "30")
    agent.until(lambda: (agent.state / "reported").exists())
    assert agent.said.count("next try in") == 2
    assert labels(api)["tdstack.dev/ready"] == "true"


def test_a_server_that_is_down_is_waited_for(api: KubeApi, start: Start) -> None:
    nobody = "https://127.0.0.1:1"
    agent = start(None, "--interval-s", "30", "--server", nobody)
    agent.until(lambda: "next try in" in agent.said)
    assert f"no answer from {nobody}" in agent.said
    agent.until(lambda: agent.said.count("next try in") == 3)
    assert (agent.state / "alive").exists()
    assert not (agent.state / "reported").exists()
    assert agent.end() < 1


def test_what_no_try_can_mend_is_said_once_with_the_remedy(api: KubeApi, start: Start) -> None:
    api.faults = [refusing(403)]
    agent = start(None, "--interval-s", "3")
    agent.until(lambda: "not reported" in agent.said)
    assert "allow the service account to get and patch nodes" in agent.said
    assert "refused by the test" in agent.said
    agent.until(lambda: (agent.state / "reported").exists())  # at the next turn
    assert agent.said.count("403") == 1


def test_a_token_that_the_kubelet_renews_is_read_again(api: KubeApi, start: Start) -> None:
    agent = start()
    agent.until(lambda: (agent.state / "reported").exists())
    api.write_token("second")
    agent.report.write_text(json.dumps({"findings": [OLD_DRIVER]}))
    agent.until(lambda: OURS in taints(api))


@pytest.mark.parametrize("at", ["checking", "asking", "waiting"])
def test_it_ends_at_once_when_told_to(api: KubeApi, start: Start, tmp_path: Path, at: str) -> None:
    pid = tmp_path / "pid"
    if at == "checking":
        agent = start(command=f"sh -c 'echo $$ >{pid}; exec sleep 600'")
        agent.until(lambda: pid.exists() and bool(pid.read_text()))
    elif at == "asking":
        api.faults = [slow(3)]
        agent = start()
        agent.until(lambda: not api.faults)
    else:
        agent = start(None, "--interval-s", "600")
        agent.until(lambda: (agent.state / "reported").exists())
    assert agent.end() < 1
    assert agent.said.endswith("told to end\n")
    if at == "checking":
        child = int(pid.read_text())
        assert not Path(f"/proc/{child}").exists() or _is_zombie(child)


def test_the_client_tells_what_went_wrong(api: KubeApi, tmp_path: Path) -> None:
    client = NodeApi(api.url, api.folder, limit_s=0.5)
    api.faults = [slow(1)]
    with pytest.raises(ApiError, match="timed out"):
        client.get("n1")
    with pytest.raises(ApiError, match="the node is gone"):
        client.get("n2")
    api.token = "third"
    with pytest.raises(ApiError, match="this pod's token") as refused:
        client.get("n1")
    assert refused.value.passing
    with pytest.raises(ApiError, match="credentials cannot be read"):
        NodeApi(api.url, tmp_path / "nowhere").get("n1")
    other = tmp_path / "other"
    with kube_api(other), pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
        NodeApi(api.url, other).get("n1")
    api.write_token()
    api.faults = [lambda: Reply(200, b"<html>"), lambda: Reply(200, b"[]")]
    with pytest.raises(ApiError, match="no JSON"):
        client.get("n1")
    with pytest.raises(ApiError, match="no node"):
        client.get("n1")
    api.faults = [lambda: Reply(302, b"", {"Location": "https://127.0.0.1:1/"})]
    with pytest.raises(ApiError, match="302"):
        client.get("n1")


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ({"metadata": {"labels": {"a": "not a value"}}}, 422),
        ({"spec": {"taints": [OURS, OURS]}}, 422),
        ({"metadata": {"resourceVersion": "1"}}, 409),
        ({"metadata": {"labels": {"a": "b"}}}, 0),
    ],
)
def test_the_server_here_refuses_what_a_real_one_does(
    api: KubeApi, patch: dict[str, Any], code: int
) -> None:
    client = NodeApi(api.url, api.folder)
    if code:
        with pytest.raises(ApiError) as refused:
            client.patch("n1", patch)
        assert refused.value.status == code
    else:
        assert client.patch("n1", patch)["metadata"]["labels"]["a"] == "b"


def test_the_api_server_is_found_as_in_a_pod() -> None:
    port = {"KUBERNETES_SERVICE_PORT_HTTPS": "6443"}
    assert server_of({"KUBERNETES_SERVICE_HOST": "10.96.0.1", **port}) == "https://10.96.0.1:6443"
    assert server_of({"KUBERNETES_SERVICE_HOST": "fd00::1"}) == "https://[fd00::1]:443"
    assert server_of({}) == ""


@pytest.mark.parametrize("bad", ["doctor", "=x", "doctor=", "a b=x"])
def test_a_check_is_a_name_and_a_command(bad: str) -> None:
    base = ["--node", "n", "--image", IMAGE, "--line", "cu124", "--state", "/s"]
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    with pytest.raises(SystemExit) as ended:
        given_of([*base, "--check", bad], environment)
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        given_of([*base, "--check", "a=b"], {})
    assert given_of([*base, "--check", "a=b 'c d'"], environment).checks == (("a", ("b", "c d")),)
