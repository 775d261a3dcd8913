"""The role as a whole: what its variables are, what it refuses before it touches a host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.conftest import ROOT
from tests.fleet import PLAYBOOKS, Fleet, cluster_file, commit, source_of

ROLE = PLAYBOOKS / "roles/tdstack"


def load(name: str) -> Any:
    return yaml.safe_load((ROLE / name).read_text())


def test_every_variable_has_a_default_a_specification_and_a_row_in_the_docs() -> None:
    specs = load("meta/argument_specs.yml")["argument_specs"]
    defaults = load("defaults/main.yml")
    options = specs["main"]["options"]
    assert list(options) == list(defaults)
    assert {name: option["default"] for name, option in options.items()} == defaults
    assert all(spec["options"] == options for spec in specs.values())
    entries = {path.stem for path in PLAYBOOKS.glob("*.yml")} - {"site"} | {"main", "prepare"}
    assert specs.keys() == entries
    page = (ROOT / "docs/ansible.md").read_text()
    table = page.partition("| variable |")[2]
    rows = re.findall(r"^\| `(tdstack_\w+)` \| (.*?) \| (.*) \|$", table, re.MULTILINE)
    assert [name for name, *_ in rows] == list(defaults)
    for name, shown, told in rows:
        default = defaults[name]
        text = ", ".join(default) if isinstance(default, list) else str(default)
        text = text.lower() if isinstance(default, bool) else text
        assert shown == (f"`{text}`" if default not in ("", [], {}) else ""), name
        choices = options[name].get("choices", [])
        assert all(f"`{choice}`" in told for choice in choices if choice), name
        said = " ".join(options[name]["description"].split()).removesuffix(".")
        assert told.startswith(said), name


def test_a_node_gets_a_part_of_the_pinned_tools() -> None:
    def pins(name: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        # A package may stand there twice, for two ranges of Python.
        for block in re.split(r"\n(?=\S)", (ROOT / name).read_text()):
            match = re.match(r"([\w.-]+==[^\s;]+)", block)
            if match:
                found.setdefault(match[1], set()).update(re.findall(r"sha256:\w+", block))
        return found

    node, everything = pins("requirements-node.lock"), pins("requirements.lock")
    assert len(node) > 40
    # One of them may know of more files than the other; what is installed must be in both.
    assert [name for name, hashes in node.items() if not hashes & everything.get(name, set())] == []
    names = {name.partition("==")[0] for name in node}
    assert {"invoke", "pydantic", "nvidia-ml-py", "pytest"} <= names
    assert not names & {"mypy", "triton", "ansible-core", "ruff", "numpy"}


def test_nothing_names_an_image_or_comes_from_a_gallery() -> None:
    files = [path for path in PLAYBOOKS.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        text = path.read_text()
        assert re.search(r"sha256:[0-9a-f]{12}", text) is None, path
        assert re.search(r"\b(community|ansible\.posix|collections:)\b", text) is None, path
    assert not list(PLAYBOOKS.rglob("requirements.yml"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_of(tmp_path_factory.mktemp("source"))


def test_what_is_wrong_on_the_control_host_is_said_before_any_host_is_touched(
    source: Path, tmp_path: Path
) -> None:
    good = cluster_file(tmp_path / "cluster.env")
    tagged = cluster_file(tmp_path / "tagged.env", IMAGE="reg.example/team/tdstack:cu124")
    # ansible_host leads nowhere: whoever opens a connection is told apart from who does not.
    wrong: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "misspelt": ({"tdstack_schedular": "slurm"}, ("does not know", "tdstack_schedular")),
        "absent": (
            {"tdstack_cluster_file": str(tmp_path / "none.env")},
            ("there is no cluster file at", "remedy: write it with `invoke push"),
        ),
        "tagged": (
            {"tdstack_cluster_file": str(tagged)},
            ("does not name one image by digest", "TDSTACK_IMAGE=reg.example/team/tdstack:cu124"),
        ),
        "choice": ({"tdstack_engine": "podman"}, ("value of tdstack_engine must be one of",)),
        "kind": ({"tdstack_free_bytes": "much"}, ("tdstack_free_bytes", "int")),
    }
    hosts = {
        name: {"ansible_host": "127.0.0.1", "ansible_port": 9, **variables}
        for name, (variables, _) in wrong.items()
    }
    common = {"tdstack_source": str(source), "tdstack_control_dir": str(tmp_path / "archives")}
    fleet = Fleet(tmp_path, hosts, {"tdstack_cluster_file": str(good), **common})
    ran = fleet.play("site.yml")
    assert ran.code == 2
    assert ran.count("failed") == dict.fromkeys(wrong, 1), ran.out
    assert ran.count("unreachable") == dict.fromkeys(wrong, 0)
    for name, (_, words) in wrong.items():
        told = re.search(rf"fatal: \[{name}\b.*?(?=fatal: \[|TASK \[|PLAY)", ran.out, re.S)
        assert told, name
        assert all(word in told[0] for word in words), told[0]

    # What is not committed is refused for all.
    (source / "README.md").write_text("changed\n")
    fleet = Fleet(tmp_path, {"any": {}}, {"tdstack_cluster_file": str(good), **common})
    dirty = fleet.play("site.yml")
    assert "the source is no commit that others could check out" in dirty.out
    assert "M README.md" in dirty.out
    assert "remedy: commit the changes" in dirty.out
    commit(source, "changed")
