"""`invoke smoke --prefix` before any check runs: which Python, and whose kernels.

The checks themselves run in prefixes of their own in test_ansible.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tdstack.errors import HostError, UsageError
from tdstack.smoke.image import kernels_version
from tdstack.smoke.prefix import command, find_python
from tdstack.smoke.run import Options
from tests.conftest import ROOT

PROGRAM = """#!/bin/sh
echo {}
"""


def a_prefix(folder: Path, version: str, name: str = "versions/one") -> Path:
    python = folder / name / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PROGRAM.format(version))
    python.chmod(0o755)
    return python


def test_the_version_in_use_is_checked_and_not_the_link_to_it(tmp_path: Path) -> None:
    python = a_prefix(tmp_path, kernels_version(ROOT))
    (tmp_path / "current").symlink_to("versions/one")
    assert find_python(ROOT, str(tmp_path)) == python
    plain = a_prefix(tmp_path / "plain", kernels_version(ROOT), name=".")
    assert find_python(ROOT, str(tmp_path / "plain")) == plain


def test_no_environment_and_other_kernels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there is no environment"):
        find_python(ROOT, str(tmp_path))
    a_prefix(tmp_path, "0.0.1", name=".")
    with pytest.raises(UsageError, match="for other kernels than the prefix's") as caught:
        find_python(ROOT, str(tmp_path))
    assert caught.value.got == "0.0.1"


def test_the_checkouts_kernels_are_not_beside_the_checks() -> None:
    with command(ROOT, Path(sys.executable), ["--tier=import"]) as words:
        checks = next(Path(w) for w in words if w.endswith("/smoke_tests") and "=" not in w)
        assert (checks / "test_import.py").is_file()
        assert (checks.parent / "tdstack/verify/main.py").is_file()
        assert not (checks.parent / "kernels").exists()
    assert not checks.exists()


@pytest.mark.parametrize("other", [{"image": "localhost/x"}, {"tier": "multi-node"}])
def test_a_prefix_is_checked_by_itself(other: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="by itself"):
        Options(prefix="/opt/tdstack/prefix", **other).require_valid()  # type: ignore[arg-type]
