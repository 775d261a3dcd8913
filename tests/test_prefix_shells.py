"""Ways into a version: sourced by real shells, loaded by both programs for modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tdstack.plan import make_plan
from tdstack.prefix.environment import OF_A_CONTAINER, run_time
from tdstack.prefix.place import Prefix
from tdstack.prefix.switch import settle
from tdstack.stack import BaseFacts, Request, make_stack
from tests.conftest import ROOT
from tests.small_prefixes import a_prefix
from tests.triton_wheels import a_fork

if TYPE_CHECKING:
    from tdstack.lock.model import Lock

OLD, NEW = "a" * 20, "b" * 20
SHOW = """
show() {
  echo "${VIRTUAL_ENV-no} ${TRITON_PTXAS_PATH-no} ${TRITON_CACHE_DIR-no} $(command -v python)"
}
"""


@pytest.fixture(params=["plain", "with a space"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> Prefix:
    return a_prefix(tmp_path / request.param, OLD, NEW)


def shown(version: Path, cache: str) -> str:
    return f"{version} {version}/ptxas {cache} {version}/bin/python"


# --------------------------------------------------------------------------- shells


def sourced(shell: str, script: str, home: Path) -> list[str]:
    if shutil.which(shell) is None:
        if os.environ.get("CI") and shell != "zsh":
            pytest.fail(f"{shell} is not there")
        pytest.skip(f"{shell} is not there")
    words = [shell, *(["-f"] if shell == "zsh" else [])]
    done = subprocess.run(
        [*words, "-euc", f"PS1='$ '\n{SHOW}\n{script}"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh"])
class TestShells:
    def test_activate_and_deactivate(self, prefix: Prefix, tmp_path: Path, shell: str) -> None:
        script = f"""
        . '{prefix.root}/activate'; show; echo "$PS1"
        . '{prefix.versions}/{OLD}/bin/activate'; show
        deactivate; show; echo "$PATH $PS1 ${{_TDSTACK_ACTIVE-no}}"
        """
        found = sourced(shell, script, tmp_path)
        cache = f"{tmp_path}/.cache/tdstack/triton"
        assert found[0] == shown(prefix.versions / NEW, cache)
        assert found[1] == f"(cu124-{NEW[:8]}) $ "
        assert found[2] == shown(prefix.versions / OLD, cache)
        assert found[3].startswith("no no no ")
        assert found[4] == "/usr/bin:/bin $  no"

    def test_what_the_user_has_set_comes_back(
        self, prefix: Prefix, tmp_path: Path, shell: str
    ) -> None:
        script = f"""
        export TRITON_CACHE_DIR=/mine TRITON_PTXAS_PATH=/theirs VIRTUAL_ENV_DISABLE_PROMPT=1
        . '{prefix.root}/activate'; show; deactivate; show; echo "$PS1"
        """
        found = sourced(shell, script, tmp_path)
        assert found[0] == shown(prefix.versions / NEW, "/mine")
        assert found[1].startswith("no /theirs /mine ")
        assert found[2] == "$ "

    def test_it_takes_the_place_of_a_venv_and_the_other_way_round(
        self, tmp_path: Path, shell: str
    ) -> None:
        prefix = a_prefix(tmp_path / "p", NEW)
        venv.create(tmp_path / "venv", symlinks=True)
        ours, theirs = f". '{prefix.root}/activate'", f". '{tmp_path}/venv/bin/activate'"
        script = f"""
        {theirs}; {ours}; echo "$PATH"; deactivate; echo "$PATH"
        {ours}; {theirs}; echo "$PATH"; deactivate; echo "$PATH"
        """
        found = sourced(shell, script, tmp_path)
        plain = "/usr/bin:/bin"
        assert found == [
            f"{prefix.versions}/{NEW}/bin:{plain}",
            plain,
            f"{tmp_path}/venv/bin:{plain}",
            plain,
        ]

    def test_a_prefix_that_moved_is_told(self, tmp_path: Path, shell: str) -> None:
        prefix = a_prefix(tmp_path / "p", NEW)
        prefix.root.rename(tmp_path / "moved")
        for script in ("activate", "current/bin/activate"):
            line = f"set +e; if . '{tmp_path}/moved/{script}' 2>&1; then echo used; fi; show"
            said, after = sourced(shell, line, tmp_path)
            assert "moved" in said
            assert str(prefix.root) in said
            assert after.startswith("no no no ")


# -------------------------------------------------------------------------- modules


@pytest.fixture(scope="session")
def modulecmd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environment modules, unpacked: its Debian package and Lmod's exclude each other."""
    folder = tmp_path_factory.mktemp("modules")
    commands = [
        ["apt-get", "download", "environment-modules"],
        ["sh", "-c", "dpkg-deb -x environment-modules_*.deb ."],
    ]
    for command in commands if shutil.which("tclsh") else []:
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    found = list(folder.glob("usr/lib/*/modulecmd.tcl"))
    if not found:
        unavailable("environment-modules")
    return found[0]


def unavailable(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not there; scripts/bootstrap.sh test installs what it needs")
    pytest.skip(f"{what} is not there")


def modules(prefix: Prefix, init: str, script: str, home: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", f"{init}\n{SHOW}\nmodule use '{prefix.root}/modulefiles'\n{script}"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), done.stderr]


def load_and_unload(prefix: Prefix, init: str, name: str, home: Path) -> None:
    old = f"tdstack/cu124-{OLD[:8]}"
    cache = f"{home}/.cache/tdstack/triton"
    script = f"""
    module load {name}; show; module unload tdstack; show
    module load {old}; show; module switch {old} {name} 2>/dev/null; show; module unload tdstack
    export TRITON_CACHE_DIR=/mine; module load {old}; show; module unload tdstack; show
    """
    *found, said = modules(prefix, init, script, home)
    assert not said
    assert found == [
        shown(prefix.versions / NEW, cache),
        found[1],
        shown(prefix.versions / OLD, cache),
        shown(prefix.versions / NEW, cache),
        shown(prefix.versions / OLD, "/mine"),
        found[5],
    ]
    assert found[1].startswith("no no no ")
    assert found[5].startswith("no no /mine ")
    assert str(prefix.root) not in found[1] + found[5]
    # What is loaded by name after the version went says why it is not there.
    shutil.rmtree(prefix.versions / OLD)
    *_, said = modules(prefix, init, f"module load {old}; true", home)
    assert "removed or moved" in " ".join(said.split())
    settle(prefix)
    *_, said = modules(prefix, init, f"module load {old}; true", home)
    assert old in " ".join(said.split())


def test_environment_modules(prefix: Prefix, modulecmd: Path, tmp_path: Path) -> None:
    init = f"""module() {{ eval "$(tclsh '{modulecmd}' bash "$@")"; }}"""
    # Below a path with a space there is no default for it, as Lmod would stumble over that.
    name = f"tdstack/cu124-{NEW[:8]}" if " " in str(prefix.root) else "tdstack"
    load_and_unload(prefix, init, name, tmp_path)


def test_lmod(prefix: Prefix, tmp_path: Path) -> None:
    init = Path("/usr/share/lmod/lmod/init/bash")
    if not init.is_file():
        unavailable("lmod")
    load_and_unload(prefix, f". {init}", "tdstack", tmp_path)


# ---------------------------------------------------------------------- what is set


def test_every_variable_of_the_image_is_set_or_left_to_the_host(lock: Lock) -> None:
    facts = BaseFacts("/usr/bin/python3.11", "2.36")
    request = Request(python="3.11", base="host", base_facts=facts, fork=a_fork())
    plan = make_plan(make_stack(lock, request), ROOT)
    version = Path("/p/versions/k")
    found = run_time(plan, version)
    assert found.fixed.keys() | found.cached.keys() | OF_A_CONTAINER == plan.final.env.keys()
    ptxas = f"{version}/lib/python3.11/site-packages/{plan.stack.line.ptxas}"
    assert found.fixed == {
        "VIRTUAL_ENV": str(version),
        "TRITON_PTXAS_PATH": ptxas,
        "TRITON_PTXAS_BLACKWELL_PATH": ptxas,
        "UV_CONSTRAINT": f"{version}/share/tdstack/constraints.txt",
    }
    assert found.cached == {"TRITON_CACHE_DIR": "triton"}
    spaced = run_time(plan, Path("/my stack/k")).fixed["UV_CONSTRAINT"]
    assert spaced == "file:///my%20stack/k/share/tdstack/constraints.txt"
