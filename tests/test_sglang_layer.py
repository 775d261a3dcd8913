"""`--with sglang`: what stands between each CUDA line and SGLang, from data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tdstack import sglang
from tdstack.errors import ExitCode, UsageError
from tdstack.lock.model import Lock
from tdstack.sglang import Release, fits, load_releases, refuse


def release(version: str, torch: str, plugins: bool, hooks: bool) -> Release:
    return Release(version=version, torch=torch, transformers="5", plugins=plugins, hooks=hooks)


def test_every_line_says_its_torch_and_what_it_lacks(root: Path, lock: Lock) -> None:
    found = {fit.line: fit for fit in fits(lock, load_releases(root))}
    assert list(found) == ["12.4", "12.6", "12.8", "12.9", "13.0"]
    for line in ("12.4", "12.6", "12.8", "12.9"):
        assert found[line].torch == "2.8.0"
        assert "with this torch: SGLang 0.5.5.post3, 0.5.2, no plug-ins" in found[line].why
    assert found["13.0"].torch == "2.11.0"
    assert "0.5.16, 0.5.14, 0.5.12, plug-ins, but nothing that ours hooks" in found["13.0"].why
    for fit in found.values():
        assert fit.why.startswith("SGLang 0.5.23: torch 2.14.1; ")


def test_a_line_fits_as_soon_as_a_release_with_the_hooks_has_its_torch(lock: Lock) -> None:
    releases = (release("9.1", "2.8.0", True, True), release("9.0", "2.11.0", True, False))
    found = {fit.line: fit.why for fit in fits(lock, releases)}
    assert found["12.4"] == found["12.9"] == ""
    same = "SGLang 9.0, plug-ins, but nothing that ours hooks"
    assert found["13.0"] == f"SGLang 9.1: torch 2.8.0; with this torch: {same}"
    unknown = fits(lock, (release("9.1", "2.99.0", True, True),))
    assert "no release that was looked at has this torch" in unknown[0].why


def test_the_remedy_names_the_newest_line_of_the_cuda_it_is_for(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        refuse(root, ["sglang"], as_json=True)
    assert "`invoke compile --cuda 13.0 --triton stock`" in caught.value.remedy
    assert "12.9 has torch 2.8.0; 13.0 has torch 2.11.0" in caught.value.got


def test_a_line_that_would_fit_is_not_passed_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting = (release("9.1", "2.11.0", True, True),)
    monkeypatch.setattr(sglang, "load_releases", lambda _root: fitting)
    with pytest.raises(UsageError, match=r"would fit CUDA 13\.0, but has no recipe yet"):
        refuse(root, ["sglang"], as_json=True)


def test_a_bad_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / sglang.RELEASES_FILE
    path.parent.mkdir(parents=True)
    path.write_text('schema = 1\n[[releases]]\nversion = "1"\n')
    with pytest.raises(UsageError) as caught:
        load_releases(tmp_path)
    assert "releases.0.torch" in caught.value.where
    path.write_text("schema = ")
    with pytest.raises(UsageError, match="cannot read"):
        load_releases(tmp_path)


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_the_verbs_refuse_and_show_each_line(root: Path, verb: str) -> None:
    invoke = str(Path(sys.executable).with_name("invoke"))
    command = [invoke, verb, "--with", "sglang"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.USAGE
    for text in (
        "12.4",
        "13.0",
        "no plug-ins",
        "plug-ins, but nothing that ours hooks",
        "pip install",
    ):
        assert text in done.stdout + done.stderr, text
    done = subprocess.run(
        [*command, "--json"], cwd=root, capture_output=True, text=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode == ExitCode.USAGE
    assert [line["line"] for line in told["details"]["lines"]][-1] == "13.0"
    other = subprocess.run(
        [invoke, verb, "--with", "tea"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert other.returncode == ExitCode.USAGE
    assert "no such layer: tea" in other.stderr
