"""scripts/enroot and scripts/apptainer: an image by digest, as one file on a node.

enroot and Apptainer are stand-ins here (cluster_files.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from tests.cluster_files import (
    HEX,
    HOST,
    IMAGE,
    LINES,
    LOCK,
    StandIns,
    cluster_file,
    lacks_squashfs,
)

OTHER = hashlib.sha256(b"another").hexdigest()
Done = subprocess.CompletedProcess[str]


@dataclass
class Maker:
    """One of the two scripts, and a store."""

    script: Path
    ending: str
    stand_ins: StandIns
    store: Path
    cluster: Path

    def command(self, *arguments: str) -> list[str]:
        return [str(self.script), "--store", str(self.store), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TDSTACK")}
        return {**kept, **self.stand_ins.environment(os.environ["PATH"]), **more}

    def run(self, *arguments: str, **environment: str) -> Done:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def make(self, *arguments: str, **environment: str) -> Done:
        return self.run("--cluster", str(self.cluster), *arguments, **environment)

    def file(self, digest: str = HEX) -> Path:
        return self.store / f"{digest}.{self.ending}"

    def made(self) -> int:
        """How often an image was made."""
        return sum(line.startswith(("enroot import", "apptainer build")) for line in self.said())

    def said(self) -> list[str]:
        return self.stand_ins.said()

    def files(self) -> set[str]:
        return {path.name for path in self.store.iterdir() if path.name != ".lock"}

    def plant(self, digest: str, age_s: float) -> None:
        """Put the file of another image there, of some age."""
        path = self.file(digest)
        path.write_bytes(digest.encode())
        Path(f"{path}.sha256").write_text("")
        os.utime(path, (time.time() - age_s,) * 2)


@pytest.fixture(params=["enroot", "apptainer"])
def maker(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Maker:
    name, ending = {"enroot": ("import.sh", "sqsh"), "apptainer": ("build.sh", "sif")}[
        request.param
    ]
    if ending == "sqsh" and lacks_squashfs():
        pytest.skip("not installed: squashfs-tools")
    return Maker(
        root / "scripts" / request.param / name,
        ending,
        StandIns(tmp_path / "programs"),
        tmp_path / "store",
        cluster_file(tmp_path / "cluster.env"),
    )


def test_the_image_is_asked_for_by_digest_once(maker: Maker) -> None:
    done = maker.make()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{maker.file()}\n"
    asked = {
        "sqsh": f"docker://{HOST}#team/tdstack:sha256:{HEX}",
        "sif": f"docker://{IMAGE}",
    }[maker.ending]
    assert maker.said()[0].split()[-1] == asked
    assert maker.files() == {maker.file().name, f"{maker.file().name}.sha256"}
    again = maker.make()
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert maker.made() == 1


def test_a_file_that_changed_on_disk_is_made_again(maker: Maker) -> None:
    maker.make()
    with maker.file().open("r+b") as stream:
        stream.write(b"x")
    assert maker.make("--check").returncode == 1
    assert maker.make().returncode == 0
    assert maker.made() == 2
    assert maker.make("--check").returncode == 0
    assert maker.made() == 2


def test_a_registry_that_gives_another_image_is_found_out(maker: Maker) -> None:
    done = maker.make(STAND_IN_LOCK=OTHER)
    assert done.returncode == 4
    assert OTHER in done.stderr
    assert f"expected {LOCK}" in done.stderr
    assert maker.files() == set()


def test_nothing_is_left_of_what_failed(maker: Maker) -> None:
    done = maker.make(STAND_IN_FAILS="1")
    assert done.returncode == 5
    assert "what the program said stands above" in done.stderr
    assert maker.files() == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_was_killed_is_made_whole_by_the_next(
    maker: Maker, number: signal.Signals
) -> None:
    killed = subprocess.Popen(
        maker.command("--cluster", str(maker.cluster)),
        env=maker.environment(STAND_IN_SLEEP="2"),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not maker.said():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, number)
    assert killed.wait(10) != 0
    assert not maker.file().exists()
    assert maker.make().returncode == 0
    assert maker.files() == {maker.file().name, f"{maker.file().name}.sha256"}


def test_of_two_at_a_time_one_makes_it(maker: Maker) -> None:
    both = [
        subprocess.Popen(
            maker.command("--cluster", str(maker.cluster)),
            env=maker.environment(STAND_IN_SLEEP="1"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.wait(30) for process in both] == [0, 0]
    assert maker.made() == 1


def test_old_files_go_but_for_the_newest_and_the_keep_list(maker: Maker) -> None:
    maker.store.mkdir()
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4)]
    for age, digest in enumerate(digests):
        maker.plant(digest, 1000.0 * age)
    maker.store.joinpath("keep").write_text(f"sha256:{digests[3]}\n")
    maker.store.joinpath("notes.txt").write_text("of somebody")
    assert maker.make("--keep", "1").returncode == 0
    left = {HEX, digests[0], digests[3]}
    names = {f"{d}.{maker.ending}{end}" for d in left for end in ("", ".sha256")}
    assert maker.files() == {*names, "keep", "notes.txt"}


def test_without_being_asked_nothing_goes(maker: Maker) -> None:
    maker.store.mkdir()
    maker.plant(OTHER, 10000)
    assert maker.make().returncode == 0
    assert maker.file(OTHER).exists()


def test_a_dry_run_makes_nothing(maker: Maker) -> None:
    done = maker.make("--dry")
    assert done.returncode == 0
    assert "would make" in done.stderr
    assert not maker.store.exists()


def test_another_image_is_taken_by_digest_only(maker: Maker) -> None:
    assert maker.run("--image", f"{HOST}/team/sglang:latest").returncode == 2
    done = maker.run("--image", f"{HOST}/team/sglang@sha256:{OTHER}", STAND_IN_LOCK="")
    assert done.returncode == 0, done.stderr
    assert maker.file(OTHER).exists()
    assert maker.run("--image", IMAGE, "--cluster", str(maker.cluster)).returncode == 2


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"TDSTACK_IMAGE": f"{HOST}/team/tdstack:cu124"}, "TDSTACK_IMAGE"),
        ({"TDSTACK_IMAGE": f"{IMAGE[:-1]}"}, "TDSTACK_IMAGE"),
        ({"TDSTACK_IMAGE": None}, "TDSTACK_IMAGE"),
        ({"TDSTACK_LOCK": "abc"}, "TDSTACK_LOCK"),
        ({"TDSTACK_CUDA": "12"}, "TDSTACK_CUDA"),
        ({"TDSTACK_TAG": "$(touch ran)"}, ":2"),
        ({"TDSTACK_TAG": "a b"}, ":2"),
        ({"TDSTACK_TAG": "`id`"}, ":2"),
        ({"TDSTACK_TAG": "'a'"}, ":2"),
        ({"TDSTACK_STORE": "/elsewhere"}, "TDSTACK_STORE"),
        ({"PATH": "/tmp"}, "PATH"),
        ({"TDSTACK_TAG": "a\nTDSTACK_TAG=b"}, "twice"),
    ],
)
def test_a_cluster_file_that_is_wrong_is_refused_and_never_run(
    maker: Maker, changed: dict[str, str | None], named: str
) -> None:
    cluster_file(maker.cluster, **changed)
    done = maker.make()
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert maker.said() == []
    assert not Path("ran").exists()


def test_comments_and_a_last_line_without_its_end_are_read(maker: Maker) -> None:
    text = "# from the registry\n\n" + "\n".join(f"{k}={v}" for k, v in LINES.items())
    maker.cluster.write_text(text)
    assert maker.make().returncode == 0


def test_what_the_environment_says_does_not_fill_in_for_a_line(maker: Maker) -> None:
    cluster_file(maker.cluster, TDSTACK_LOCK=None)
    done = maker.make(TDSTACK_LOCK=LOCK)
    assert done.returncode == 2
    assert "TDSTACK_LOCK" in done.stderr


def test_an_image_of_another_machine_is_told(maker: Maker) -> None:
    other = "linux/arm64" if os.uname().machine == "x86_64" else "linux/amd64"
    cluster_file(maker.cluster, TDSTACK_PLATFORM=other)
    done = maker.make()
    assert done.returncode == 3
    assert other in done.stderr


def test_a_missing_program_is_named(maker: Maker) -> None:
    maker.stand_ins.folder.joinpath(maker.script.parent.name).unlink()
    done = maker.make()
    assert done.returncode == 3
    assert f"{maker.script.parent.name} is missing" in done.stderr


def archive(path: Path, manifests: list[bytes], blob: bytes | None = None) -> str:
    """Write an OCI archive with these manifests, and return the digest of the first."""
    digests = [hashlib.sha256(m).hexdigest() for m in manifests]
    index = {"schemaVersion": 2, "manifests": [{"digest": f"sha256:{d}"} for d in digests]}
    files = {"index.json": json.dumps(index).encode()}
    files |= {f"blobs/sha256/{d}": blob or m for d, m in zip(digests, manifests, strict=True)}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    return digests[0]


def apptainer(root: Path, tmp_path: Path, digest: str, file: Path) -> tuple[Done, StandIns]:
    cluster = cluster_file(
        tmp_path / "cluster.env", TDSTACK_IMAGE=f"{HOST}/team/tdstack@sha256:{digest}"
    )
    programs = StandIns(tmp_path / "programs")
    command = [str(root / "scripts/apptainer/build.sh"), "--cluster", str(cluster)]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store"), "--archive", str(file)],
        env={**os.environ, **programs.environment(os.environ["PATH"])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, programs


def test_an_archive_is_taken_if_it_is_of_this_image(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    digest = archive(file, [b"{}"])
    done, programs = apptainer(root, tmp_path, digest, file)
    assert done.returncode == 0, done.stderr
    assert programs.said()[0].endswith(f"oci-archive:{file}")


@pytest.mark.parametrize(
    ("manifests", "blob", "named"),
    [
        ([b"other"], None, "another image"),
        ([b"{}", b"second"], None, "or of several"),
        ([b"{}"], b"{ }", "not its digest's"),
    ],
)
def test_an_archive_of_something_else_is_refused(
    root: Path, tmp_path: Path, manifests: list[bytes], blob: bytes | None, named: str
) -> None:
    file = tmp_path / "image.tar"
    archive(file, manifests, blob)
    done, programs = apptainer(root, tmp_path, hashlib.sha256(b"{}").hexdigest(), file)
    assert done.returncode == 4
    assert named in done.stderr
    assert programs.said() == []


def test_no_script_names_an_image_of_its_own(root: Path) -> None:
    found = []
    for folder in ("lib", "slurm", "enroot", "apptainer"):
        for path in sorted(root.joinpath("scripts", folder).rglob("*")):
            text = path.read_text() if path.is_file() else ""
            found += [(path.name, m) for m in re.findall(r"sha256:[0-9a-f]{8,}", text)]
            found += [(path.name, m) for m in re.findall(r"docker://(?!\$|HOST)\S+", text)]
    assert found == []
