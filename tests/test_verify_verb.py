"""`invoke verify --prefix` and `invoke install` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.test_cli import invoke
from tests.triton_environments import Venv
from tests.triton_wheels import FORK_BACKENDS, FORK_FILES, STOCK_FILES, TAG

if TYPE_CHECKING:
    from tests.conftest import MakeWheel


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"TDSTACK_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def fork(tmp_path: Path, make_wheel: MakeWheel) -> Path:
    return make_wheel(
        tmp_path, "triton_dist", "3.4.0", FORK_FILES, tag=TAG, entry_points=FORK_BACKENDS
    )


def test_from_stock_to_the_fork_broken_and_mended(
    tmp_path: Path, make_wheel: MakeWheel, fork: Path, cache: dict[str, str]
) -> None:
    venv = Venv(tmp_path / "venv")
    stock = make_wheel(tmp_path, "triton", "3.4.0", STOCK_FILES, tag=TAG)
    venv.install(stock)
    prefix = f"--prefix={venv.prefix}"
    wheel = f"--wheel={fork}"

    dry = invoke(ROOT, "install", prefix, wheel, "--layer=triton", "--dry", **cache)
    assert dry.code == 0
    assert "would take its place" in dry.err

    done = invoke(ROOT, "install", prefix, wheel, "--layer=triton", "--json", **cache)
    assert done.code == 0, done.err
    assert json.loads(done.out)["triton"] == "distributed"

    venv.install(stock)
    broken = invoke(ROOT, "verify", prefix, "--json", **cache)
    assert broken.code == 1
    told = json.loads(broken.out)  # one document, that of the error
    assert told["exit_code"] == 1
    assert told["details"]["triton"] == "broken"
    assert "triton._C.libtriton.distributed" in told["expected"]

    # The label that the alias still carries leads to the wheel in the store.
    mended = invoke(ROOT, "verify", prefix, "--fix", "--json", **cache)
    assert mended.code == 0, mended.err
    assert json.loads(mended.out)["mended"]
    assert invoke(ROOT, "verify", prefix, "--triton=distributed", **cache).code == 0
    assert invoke(ROOT, "verify", prefix, "--triton=stock", **cache).code == 1


def test_bad_input_ends_with_the_right_code(
    tmp_path: Path, fork: Path, cache: dict[str, str]
) -> None:
    nowhere = f"--prefix={tmp_path / 'nowhere'}"
    assert invoke(ROOT, "verify", **cache).code == 2
    assert invoke(ROOT, "verify", nowhere, **cache).code == 3
    assert invoke(ROOT, "verify", nowhere, "--triton=both", **cache).code == 2
    assert invoke(ROOT, "install", nowhere, "--layer=torch", f"--wheel={fork}", **cache).code == 2
    assert invoke(ROOT, "install", nowhere, "--layer=triton", f"--wheel={fork}", **cache).code == 3
    venv = Venv(tmp_path / "venv")
    install = ("install", f"--prefix={venv.prefix}", "--layer=triton")
    assert invoke(ROOT, *install, **cache).code == 2
    assert invoke(ROOT, *install, f"--wheel={tmp_path / 'x.whl'}", **cache).code == 2
    other = fork.with_name(fork.name.replace("cp311-cp311", "cp312-cp312"))
    fork.rename(other)
    assert invoke(ROOT, *install, f"--wheel={other}", **cache).code == 4
    assert venv.files() == {}
