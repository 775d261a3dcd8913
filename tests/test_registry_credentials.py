"""Passwords and helpers: where they are found, and that none gets out."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import traceback
from pathlib import Path

import pytest

from tdstack.errors import ExitCode, HostError, UpstreamError
from tests.authorities import Authority
from tests.registries import RunningRegistry, installed_or_skip
from tests.registry_logins import (
    SECRET,
    USER,
    authority,
    auths,
    home,
    log_in,
    push_and_pull,
    trust,
    with_password,
)

__all__ = ["authority", "home", "with_password"]


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        (".docker/config.json", ""),
        (".config/containers/auth.json", ""),
        ("d/config.json", "DOCKER_CONFIG"),
        ("run/containers/auth.json", "XDG_RUNTIME_DIR"),
        ("named.json", "REGISTRY_AUTH_FILE"),
    ],
)
def test_where_credentials_are_found(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variable: str,
) -> None:
    trust(home, with_password.host, authority)
    log_in(home, auths(with_password.host), name)
    places = {"DOCKER_CONFIG": "d", "XDG_RUNTIME_DIR": "run", "REGISTRY_AUTH_FILE": name}
    if variable:
        monkeypatch.setenv(variable, str(home / places[variable]))
    push_and_pull(with_password.host, "found")


def test_what_a_real_login_saves_is_understood(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed_or_skip("skopeo")
    folder = trust(home, with_password.host, authority)
    command = ["skopeo", "login", "--username", USER, "--password-stdin", with_password.host]
    command += ["--authfile", str(home / "auth.json"), "--cert-dir", str(folder)]
    subprocess.run(command, input=SECRET, text=True, check=True, capture_output=True)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "auth.json"))
    push_and_pull(with_password.host, "login")


def test_credentials_of_a_path_come_before_those_of_the_host(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    host = with_password.host
    trust(home, host, authority)
    entries = [auths(host, "wrong"), auths(f"{host}/team/special")]
    log_in(home, {"auths": {k: v for e in entries for k, v in e["auths"].items()}})  # type: ignore[attr-defined]
    push_and_pull(host, "team/special/a")
    with pytest.raises(UpstreamError, match="refuses"):
        push_and_pull(host, "team/other")


def test_a_wrong_password_is_told_without_the_password(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    trust(home, with_password.host, authority)
    wrong = "Wr0ng-of-a-test"
    log_in(home, auths(with_password.host, wrong))
    with pytest.raises(UpstreamError, match="refuses your credentials") as caught:
        push_and_pull(with_password.host, "wrong")
    assert caught.value.code == ExitCode.UPSTREAM
    assert USER in caught.value.got
    assert "login" in caught.value.remedy
    assert "REGISTRY_AUTH_FILE" in caught.value.remedy
    seen = "".join(traceback.format_exception(caught.value)) + caplog.text
    seen += "".join(capfd.readouterr()) + json.dumps(caught.value.as_dict())
    assert with_password.host in seen
    assert wrong not in seen
    assert base64.b64encode(f"{USER}:{wrong}".encode()).decode() not in seen
    # A password that was refused is not sent again: that locks accounts.
    assert with_password.log().count('"HEAD /v2/wrong/') == 2


def test_no_credentials_is_told(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    trust(home, with_password.host, authority)
    with pytest.raises(UpstreamError, match="there are none for it"):
        push_and_pull(with_password.host, "none")


def test_netrc_is_not_read(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    trust(home, with_password.host, authority)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {SECRET}\n")
    with pytest.raises(UpstreamError, match="there are none for it"):
        push_and_pull(with_password.host, "netrc")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"HOST": {"auth": "UGE1NQ=="}}}',
        '{"auths": {"HOST": {"auth": "Pa55-of-a-test"}}}',
        '{"credHelpers": {"HOST": "../Pa55-of-a-test"}}',
        '{"credHelpers": {"HOST": "not-installed-here"}}',
        "\udcff",
    ],
)
def test_a_damaged_file_of_credentials_is_named(
    with_password: RunningRegistry, authority: Authority, home: Path, text: str
) -> None:
    trust(home, with_password.host, authority)
    log_in(home, {})
    file = home / ".docker" / "config.json"
    file.write_text(text.replace("HOST", with_password.host), errors="surrogateescape")
    with pytest.raises(HostError) as caught:
        push_and_pull(with_password.host, "damaged")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


HELPER = """#!/bin/sh
echo "$0 $*" >>"$HOME/arguments"
read -r server
echo "$server" >>"$HOME/servers"
if [ "$server" = "{host}" ]; then {answer}; fi
echo "credentials not found in native keychain"
exit 1
"""


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for helpers, first on PATH."""
    folder = home / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "docker-credential-test"


def install(helper: Path, host: str, answer: str) -> None:
    helper.write_text(HELPER.format(host=host, answer=answer))
    helper.chmod(0o755)


@pytest.mark.parametrize("field", ["credHelpers", "credsStore"])
def test_a_helper_is_asked_over_stdin(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path, field: str
) -> None:
    host = with_password.host
    trust(home, host, authority)
    answer = json.dumps({"ServerURL": host, "Username": USER, "Secret": SECRET})
    install(helper, host, f"echo '{answer}'; exit 0")
    log_in(home, {field: {host: "test"} if field == "credHelpers" else "test"})
    push_and_pull(host, "helped")
    assert (home / "arguments").read_text() == f"{helper} get\n"
    assert (home / "servers").read_text() == f"{host}\n"


def test_a_helper_without_credentials_leaves_it_to_the_next_file(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path
) -> None:
    trust(home, with_password.host, authority)
    install(helper, "another", "exit 0")
    log_in(home, {"credsStore": "test"})
    log_in(home, auths(with_password.host), ".config/containers/auth.json")
    push_and_pull(with_password.host, "next")


@pytest.mark.parametrize("answer", [f"echo {SECRET}; exit 2", f"echo {SECRET}; exit 0"])
def test_what_a_broken_helper_says_is_not_repeated(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path, answer: str
) -> None:
    trust(home, with_password.host, authority)
    install(helper, with_password.host, answer)
    log_in(home, {"credHelpers": {with_password.host: "test"}})
    with pytest.raises(HostError, match="docker-credential-test") as caught:
        push_and_pull(with_password.host, "broken")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
