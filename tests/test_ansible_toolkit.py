"""The container toolkit's packages on a host: from a signed repository, and from a folder."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, Ran
from tests.registries import installed_or_skip
from tests.ssh_hosts import SshHost, ssh_hosts

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - include_role:
        name: tdstack
        tasks_from: toolkit
"""
TOOL, BASE = "tdstack-test-toolkit", "tdstack-test-toolkit-base"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    for program in ("dpkg-deb", "gpg"):
        installed_or_skip(program)
    folder = tmp_path_factory.mktemp("toolkit")
    (shared := folder / "shared").mkdir()
    with ssh_hosts(folder / "hosts", ["gpu01"], shared) as hosts:
        # No other repository: nothing but the one of the test is asked.
        hosts[0].run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
        package(shared, TOOL, depends=BASE)
        package(shared, BASE)
        yield hosts[0]


def package(folder: Path, name: str, depends: str = "") -> None:
    """Build a package with no files."""
    (tree := folder / f"{name}.tree" / "DEBIAN").mkdir(parents=True)
    fields = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nDescription: made by a test\n"
    fields += "Maintainer: Test <test@example.invalid>\n"
    fields += f"Depends: {depends}\n" if depends else ""
    (tree / "control").write_text(fields)
    command = ["dpkg-deb", "--build", str(tree.parent), str(folder / f"{name}.deb")]
    subprocess.run(command, check=True, capture_output=True)


def run(host: SshHost, folder: Path, **variables: Any) -> Ran:
    (folder / "play.yml").write_text(PLAY)
    fleet = Fleet(folder, {host.name: dict(host.variables)}, {"tdstack_root": "/opt/tdstack"})
    return fleet.play(str(folder / "play.yml"), **variables)


def installed(host: SshHost) -> set[str]:
    shown = host.run("dpkg-query -W -f '${Package} ${db:Status-Status}\\n'")
    return {row.split()[0] for row in shown.splitlines() if row.endswith(" installed")} & {
        *(TOOL, BASE)
    }


def test_a_folder_of_packages_is_installed_once_and_only_with_its_hashes(
    host: SshHost, tmp_path: Path
) -> None:
    (folder := tmp_path / "packages").mkdir()
    shared = next(host.known_hosts.parents[2].glob("shared"))
    # The one that needs the other comes first in the list: apt finds the order.
    files = [folder / f"{name}.deb" for name in (TOOL, BASE)]
    for file in files:
        file.write_bytes((shared / file.name).read_bytes())
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    asked = {"tdstack_toolkit": "folder", "tdstack_toolkit_folder": str(folder)}

    (folder / "SHA256SUMS").write_text(sums.replace(sums[0], "0" if sums[0] != "0" else "1", 1))
    altered = run(host, tmp_path, **asked)
    assert altered.code != 0
    assert "is not what its SHA256SUMS says" in altered.out
    assert f"{TOOL}.deb: FAILED" in altered.out
    assert installed(host) == set()

    (folder / "SHA256SUMS").write_text(sums)
    first = run(host, tmp_path, **asked)
    assert first.code == 0, first.out
    assert installed(host) == {TOOL, BASE}
    second = run(host, tmp_path, **asked)
    assert (second.code, second.count("changed")) == (0, {"gpu01": 0}), second.out
    host.run("dpkg --purge", TOOL, BASE)


def test_a_repository_is_taken_with_the_pinned_key_alone(host: SshHost, tmp_path: Path) -> None:
    shared = next(host.known_hosts.parents[2].glob("shared"))
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--homedir", str(home)]
    subprocess.run(
        [*gpg, "--passphrase", "", "--quick-gen-key", "Test", "ed25519", "sign"],
        check=True,
        capture_output=True,
    )
    listed = subprocess.run(
        [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
    ).stdout
    fingerprint = next(r.split(":")[9] for r in listed.splitlines() if r.startswith("fpr:"))
    key = tmp_path / "key.asc"
    subprocess.run([*gpg, "--armor", "--output", str(key), "--export"], check=True)
    publish(shared, gpg)
    asked = {
        "tdstack_toolkit": "repository",
        "tdstack_toolkit_repository": "file:/run/shared",
        "tdstack_toolkit_key": str(key),
        "tdstack_toolkit_packages": [f"{TOOL}=1.0"],
    }
    # As preset, NVIDIA's own key is the pinned one.
    foreign = run(host, tmp_path, **asked)
    assert foreign.code != 0
    assert "the repository's key is not the one that is pinned" in foreign.out
    assert f"got: {fingerprint}" in foreign.out
    assert "nvidia" not in host.run("ls /etc/apt/sources.list.d /etc/apt/keyrings")

    mine = {**asked, "tdstack_toolkit_key_fingerprint": fingerprint}
    first = run(host, tmp_path, **mine)
    assert first.code == 0, first.out
    assert installed(host) == {TOOL, BASE}
    second = run(host, tmp_path, **mine)
    assert (second.code, second.count("changed")) == (0, {"gpu01": 0}), second.out


def publish(folder: Path, gpg: list[str]) -> None:
    """Make a flat repository, signed, of the packages in a folder."""
    entries = []
    for file in sorted(folder.glob("*.deb")):
        command = ["dpkg-deb", "--field", str(file)]
        fields = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        entries.append(f"{fields}Filename: ./{file.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    index = "\n".join(entries).encode()
    (folder / "Packages").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    release = folder / "Release"
    release.write_text(
        f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {len(index)} Packages\n"
    )
    signed = ["--yes", "--output", str(folder / "InRelease"), "--clearsign", str(release)]
    subprocess.run([*gpg, *signed], check=True, capture_output=True)
