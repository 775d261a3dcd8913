"""serve.sbatch on a real Slurm, with a program in place of SGLang's server."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster_files import HEX, StandIns, cluster_file, lacks_squashfs
from tests.slurm_cluster import PATH, Slurm, needs_slurm, running

pytestmark = needs_slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    yield from running(tmp_path_factory)


@dataclass
class Serving:
    """A job of serve.sbatch."""

    slurm: Slurm
    root: Path
    out: Path
    job: str = ""

    def begin(self, *arguments: str, server: str = "", options: tuple[str, ...] = ()) -> None:
        program = f"{sys.executable} {self.root / 'tests/stand_in_server.py'} {server}"
        script = str(self.root / "scripts/slurm/serve.sbatch")
        self.job = self.slurm.submit(
            f"--output={self.log_file}",
            *options,
            script,
            *("--form", "bare", "--python", sys.executable, "--out", str(self.out)),
            *arguments,
            *("--", "--model-path", "MODEL", "--tp-size", "8"),
            cwd=self.root,
            environment={"TDSTACK_SERVER": program},
        )

    @property
    def log_file(self) -> Path:
        return self.out.with_suffix(".log")

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def server_log(self) -> str:
        return (self.out / "server.log").read_text()

    def endpoint(self) -> str:
        file = self.out / "endpoint"
        self.slurm.until(file.exists, 30, "endpoint")
        return file.read_text().strip()

    def port(self) -> str:
        return self.log.split("starting the server on port ")[1].split(";")[0]

    def ended(self, limit_s: float = 40) -> tuple[str, str]:
        said = self.slurm.ended(self.job, limit_s)
        return said["JobState"], said["ExitCode"]


@pytest.fixture
def serving(slurm: Slurm, root: Path, tmp_path: Path) -> Serving:
    return Serving(slurm, root, tmp_path / "out")


def test_it_is_announced_once_it_answers_and_a_cancel_stops_it_cleanly(serving: Serving) -> None:
    serving.begin(server="--warm-s 2")
    address = serving.endpoint()
    with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
        assert answer.status == 200
    assert "serving MODEL, tp 8, overlap 1" in serving.server_log
    serving.slurm.run("scancel", serving.job)
    assert serving.ended()[0] == "CANCELLED"
    serving.slurm.until(lambda: "ended with 0" in serving.log, 15, "the job's last words")
    assert "stopped cleanly" in serving.server_log
    assert not serving.out.joinpath("endpoint").exists()


def test_the_signal_before_the_time_limit_stops_it_cleanly(serving: Serving) -> None:
    serving.begin()
    serving.endpoint()
    serving.slurm.run("scancel", "--batch", "--signal=TERM", serving.job)
    assert serving.ended() == ("COMPLETED", "0:0"), serving.log
    assert "stopped cleanly" in serving.server_log
    assert not serving.out.joinpath("endpoint").exists()


def test_a_server_that_knows_no_sigterm_is_stopped_all_the_same(serving: Serving) -> None:
    serving.begin(server="--stubborn")
    serving.endpoint()
    serving.slurm.run("scancel", "--batch", "--signal=TERM", serving.job)
    assert serving.ended() == ("COMPLETED", "0:0"), serving.log
    assert "ended with 143" in serving.log


def test_a_server_that_does_not_answer_is_ended_with_6(serving: Serving) -> None:
    serving.begin("--start-limit-s", "2", server="--warm-s 60")
    assert serving.ended() == ("FAILED", "6:0")
    assert "did not answer within 2 s" in serving.log
    assert "serving MODEL" in serving.log
    assert "stopped cleanly" in serving.server_log


def test_a_server_that_ends_by_itself_gives_its_code(serving: Serving) -> None:
    serving.begin(server="--die-s 3")
    serving.endpoint()
    assert serving.ended() == ("FAILED", "3:0")
    assert "ended by itself" in serving.log
    assert not serving.out.joinpath("endpoint").exists()


def test_a_server_that_cannot_start_is_told_before_the_limit(serving: Serving) -> None:
    serving.begin(server="--no-such-option")
    assert serving.ended(20) == ("FAILED", "2:0")
    assert "unrecognized arguments: --no-such-option" in serving.log


def test_two_servers_of_one_host_get_ports_of_their_own(
    slurm: Slurm, root: Path, tmp_path: Path
) -> None:
    both = [Serving(slurm, root, tmp_path / name) for name in ("a", "b")]
    for one in both:
        one.begin()
    assert len({one.endpoint() for one in both}) == 2
    for one in both:
        slurm.run("scancel", one.job)
    assert {one.ended()[0] for one in both} == {"CANCELLED"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--form", "docker"), "no such form: docker"),
        (("--cluster", "cluster.env"), "the form bare runs what is installed"),
        (("--frm", "bare"), "no such option: --frm"),
        (("--start-limit-s", "soon"), "no number of seconds"),
        (("--port", "http"), "this is no port"),
        (("--port",), "--port needs a value"),
    ],
)
def test_wrong_usage_ends_with_2(serving: Serving, arguments: tuple[str, ...], said: str) -> None:
    script = str(serving.root / "scripts/slurm/serve.sbatch")
    serving.job = serving.slurm.submit(
        f"--output={serving.log_file}",
        script,
        *("--form", "bare", "--python", sys.executable, "--out", str(serving.out), *arguments),
        cwd=serving.root,
    )
    assert serving.ended(20) == ("FAILED", "2:0")
    assert said in serving.log


@pytest.mark.skipif(lacks_squashfs(), reason="not installed: squashfs-tools")
@pytest.mark.parametrize("form", ["apptainer", "pyxis"])
def test_in_a_container_the_image_is_the_cluster_files(
    serving: Serving, tmp_path: Path, form: str
) -> None:
    programs = StandIns(tmp_path / "programs")
    store, cluster = tmp_path / "store", cluster_file(tmp_path / "cluster.env")
    program = f"{sys.executable} {serving.root / 'tests/stand_in_server.py'}"
    models = tmp_path / "models"
    models.mkdir()
    serving.job = serving.slurm.submit(
        f"--output={serving.log_file}",
        str(serving.root / "scripts/slurm/serve.sbatch"),
        *("--form", form, "--cluster", str(cluster), "--store", str(store)),
        *("--out", str(serving.out), "--mount", str(models)),
        *("--", "--model-path", str(models)),
        cwd=serving.root,
        environment={"TDSTACK_SERVER": program, **programs.environment(PATH)},
    )
    serving.endpoint()
    serving.slurm.run("scancel", serving.job)
    assert serving.ended()[0] == "CANCELLED"
    said = programs.said()
    out = serving.out
    if form == "apptainer":
        image = store / f"{HEX}.sif"
        options = f"--nv --no-home --pwd /tmp --bind {out}:{out} --bind {models}:{models}"
        assert [line for line in said if "apptainer exec" in line] == [
            f"apptainer exec {options} {image} {program} --host 127.0.0.1 --port "
            f"{serving.port()} --model-path {models}"
        ]
    else:
        image = store / f"{HEX}.sqsh"
        assert said[-4:] == [
            f"srun --container-image={image}",
            f"srun --container-mounts={out}:{out},{models}:{models}",
            "srun --container-workdir=/tmp",
            "srun --no-container-mount-home",
        ]
    assert image.exists()


def test_without_pyxis_its_form_is_refused(serving: Serving, tmp_path: Path) -> None:
    cluster = cluster_file(tmp_path / "cluster.env")
    serving.job = serving.slurm.submit(
        f"--output={serving.log_file}",
        str(serving.root / "scripts/slurm/serve.sbatch"),
        *("--form", "pyxis", "--cluster", str(cluster), "--out", str(serving.out)),
        cwd=serving.root,
    )
    assert serving.ended(20) == ("FAILED", "3:0")
    assert "srun does not know --container-image" in serving.log


def test_an_image_that_a_node_cannot_get_ends_the_job(serving: Serving, tmp_path: Path) -> None:
    programs = StandIns(tmp_path / "programs")
    cluster = cluster_file(tmp_path / "cluster.env")
    serving.job = serving.slurm.submit(
        f"--output={serving.log_file}",
        str(serving.root / "scripts/slurm/serve.sbatch"),
        *("--form", "apptainer", "--cluster", str(cluster), "--out", str(serving.out)),
        *("--store", str(tmp_path / "store")),
        cwd=serving.root,
        environment={"STAND_IN_FAILS": "1", **programs.environment(PATH)},
    )
    assert serving.ended(20) == ("FAILED", "5:0")
    assert "0: FATAL: manifest unknown" in serving.log
    assert "a node could not get the image" in serving.log
