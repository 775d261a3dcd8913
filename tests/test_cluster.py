"""The cluster file: what it refuses, and that every kind of reader takes the same from it."""

from __future__ import annotations

import string
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdstack import __version__
from tdstack.cluster import Cluster, check_place, cluster_of, parse, read, write
from tdstack.errors import HostError, UsageError
from tdstack.registry.reference import parse_repository
from tests.shipped import tiny_plan

DIGEST = "sha256:" + "0123456789abcdef" * 4
CLUSTER = Cluster(
    image=f"registry.example:5000/team/tdstack@{DIGEST}",
    tag="cu124-py311-stock-0123456789ab",
    cuda="12.4",
    triton="stock",
    torch="cuda",
    python="3.11",
    platform="linux/amd64",
    lock="ab" * 32,
    driver="525.60.13",
    version=__version__,
)
NAMES = [field.name for field in fields(Cluster)]
# What a shell, docker's reader or systemd's would not take as it stands.
SPECIAL = " \t\n\r\x0b\x0c\0'\"`$\\#;&|<>(){}*?!~%^,=é "

hosts = st.sampled_from(["registry.example", "r.example:5000", "[::1]:5000", "10.0.0.7:443"])
clusters = st.builds(
    Cluster,
    image=st.builds(
        "{}/{}@sha256:{}".format,
        hosts,
        st.from_regex(r"[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,2}", fullmatch=True),
        st.text("0123456789abcdef", min_size=64, max_size=64),
    ),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,40}", fullmatch=True),
    cuda=st.sampled_from(["12.4", "12.6", "12.8", "12.9", "13.0"]),
    triton=st.sampled_from(["stock", "distributed"]),
    torch=st.sampled_from(["cuda", "cpu", "none"]),
    python=st.sampled_from(["3.11", "3.12", "3.13"]),
    platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
    lock=st.text("0123456789abcdef", min_size=64, max_size=64),
    driver=st.from_regex(r"[0-9]{3}(\.[0-9]{2,3}){1,2}", fullmatch=True),
    version=st.from_regex(r"[0-9]\.[0-9]\.[0-9]([a-z]+[0-9])?(\+[a-z0-9]+)?", fullmatch=True),
)


@given(clusters)
def test_what_is_rendered_is_read_back(cluster: Cluster) -> None:
    assert parse(cluster.render()) == cluster


@given(st.sampled_from(NAMES), st.sampled_from(SPECIAL), st.integers(0, 200))
def test_a_value_that_some_reader_would_bend_is_refused(name: str, bad: str, at: int) -> None:
    value = asdict(CLUSTER)[name]
    at = min(at, len(value))
    bent = value[:at] + bad + value[at:]
    with pytest.raises(UsageError, match=f"TDSTACK_{name.upper()}"):
        replace(CLUSTER, **{name: bent})
    assume(bad != "\n" or at < len(value))  # that is an empty line after it
    line = f"TDSTACK_{name.upper()}={value}\n"
    with pytest.raises(UsageError):
        parse(CLUSTER.render().replace(line, line.replace(value, bent)))


@given(st.text(string.printable, max_size=200))
def test_any_text_is_a_cluster_file_or_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize("host", ["registry.example:5000", "[2001:db8::7]:5000"])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_reads_what_python_reads(tmp_path: Path, shell: str, host: str) -> None:
    cluster = replace(CLUSTER, image=f"{host}/team/tdstack@{DIGEST}")
    path = tmp_path / "cluster.env"
    write(path, cluster)
    # Files that a pattern in the values could match, were the shell to expand it.
    for name in ("a", ":", "TDSTACK_IMAGE="):
        (tmp_path / name).touch()
    script = "set -eu; set -a; . ./cluster.env; exec env -0"
    done = subprocess.run(
        [shell, "-c", script], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    seen = dict(item.split("=", 1) for item in done.stdout.decode().split("\0") if item)
    read_by_shell = {name: seen[f"TDSTACK_{name.upper()}"] for name in NAMES}
    assert Cluster(**read_by_shell) == read(path) == cluster


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("TDSTACK_TAG=", "export TDSTACK_TAG=", "line 2"),
        ("TDSTACK_TAG=", "TDSTACK_TGA=", "line 2"),
        ("TDSTACK_TAG=", "TDSTACK_CUDA=12.4\nTDSTACK_TAG=", "line 4"),
        ("TDSTACK_CUDA=12.4\n", "", "TDSTACK_CUDA"),
        ("TDSTACK_CUDA=12.4\n", "TDSTACK_CUDA=12.4 # the line\n", "TDSTACK_CUDA"),
        ("TDSTACK_CUDA=12.4\n", "TDSTACK_CUDA=12.4\r\n", "TDSTACK_CUDA"),
        ("TDSTACK_TRITON=stock", "TDSTACK_TRITON=nightly", "distributed|stock"),
        (f"@{DIGEST}", ":cu124", "TDSTACK_IMAGE"),
        (f"@{DIGEST}", f":cu124@{DIGEST}", "TDSTACK_IMAGE"),
        (f"@{DIGEST}", "@sha256:12", "TDSTACK_IMAGE"),
        ("registry.example:5000/", "localhost/", "TDSTACK_IMAGE"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = CLUSTER.render()
    assert old in text
    path = tmp_path / "cluster.env"
    path.write_bytes(text.replace(old, new).encode())
    with pytest.raises(UsageError) as refused:
        read(path)
    assert named in f"{refused.value.where} {refused.value.expected}"
    assert str(path) in refused.value.where
    assert "--cluster FILE" in refused.value.remedy


def test_comments_and_empty_lines_are_left_out() -> None:
    assert parse("# our cluster\n\n" + CLUSTER.render()) == CLUSTER


def test_a_file_that_is_not_there_or_no_text_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    for name in ("absent", "binary", "."):
        with pytest.raises(UsageError, match="cannot be read"):
            read(tmp_path / name)


def test_the_file_replaces_its_forerunner_whole_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cluster.env"
    write(path, replace(CLUSTER, cuda="12.6"))
    write(path, CLUSTER)
    assert read(path) == CLUSTER
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.env"
    write(path, CLUSTER)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, replace(CLUSTER, cuda="12.6"))
    assert read(path) == CLUSTER
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "cluster.env")
    for path in (tmp_path, tmp_path / "absent" / "cluster.env"):
        with pytest.raises(HostError, match="cannot be written"):
            check_place(path)


def test_the_file_follows_from_the_plan() -> None:
    plan = tiny_plan()
    cluster = cluster_of(plan, parse_repository("registry.example/tdstack"), DIGEST)
    assert cluster.image == f"registry.example/tdstack@{DIGEST}"
    assert cluster.tag == f"cu124-py311-stock-torch-none-sm_80-{plan.final.key[:12]}"
    assert (cluster.lock, cluster.line) == (plan.lock_slice, "cu124")
    assert cluster.driver == plan.stack.line.driver_floor
