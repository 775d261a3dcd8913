"""How a bundle and its wheels get into the user's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tdstack.assemble.bundle import read_bundle
from tdstack.compiler.publish import check_target, publish_bundle, publish_file
from tdstack.errors import UsageError
from tests.bundles import write_bundle


def test_bundle_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "dist" / "cubins" / "cu124"
    for archs in (["sm_80", "sm_90"], ["sm_90"]):
        made = write_bundle(tmp_path / "made" / archs[0], archs=archs)
        (made / "sm_90" / "not_in_the_manifest.cubin").write_bytes(b"x")
        check_target(target)
        publish_bundle(read_bundle(made), made, target)
    assert [p.name for p in target.parent.iterdir()] == ["cu124"]
    assert {c.arch for c in read_bundle(target).cubins} == {"sm_90"}
    assert not (target / "sm_80").exists()
    assert not (target / "sm_90" / "not_in_the_manifest.cubin").exists()


def test_failure_leaves_the_older_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_bundle(tmp_path / "cubins" / "cu124", archs=["sm_80"])
    made = write_bundle(tmp_path / "made")

    def full(source: Path, to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(to))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        publish_bundle(read_bundle(made), made, target)
    with pytest.raises(OSError, match="No space left"):
        publish_file(made / "manifest.json", tmp_path / "some.whl")
    assert {c.arch for c in read_bundle(target).cubins} == {"sm_80"}
    assert [p.name for p in target.parent.iterdir()] == ["cu124"]
    assert not list(tmp_path.glob("*some.whl*"))


def test_interruption_between_the_two_renames_brings_the_older_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_bundle(tmp_path / "cubins" / "cu124", archs=["sm_80"])
    made = write_bundle(tmp_path / "made")
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if ".new." in self.name:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_bundle(read_bundle(made), made, target)
    assert {c.arch for c in read_bundle(target).cubins} == {"sm_80"}
    assert [p.name for p in target.parent.iterdir()] == ["cu124"]


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "cubins" / "cu124"
    check_target(target)
    target.mkdir(parents=True)
    check_target(target)
    (target / "thesis.tex").touch()
    with pytest.raises(UsageError, match="something else") as caught:
        check_target(target)
    assert "--out DIR" in caught.value.remedy
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="not a folder"):
        check_target(file / "cubins" / "cu124")
