"""Triton-distributed made from the real stock release, installed for real, by pip, uv and us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tdstack.errors import HostError, IntegrityError
from tdstack.fork.acquire import take_file
from tdstack.fork.model import ForkWheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.prefix.triton import install
from tdstack.verify.environment import find_environment
from tdstack.verify.triton.diagnosis import check_triton, diagnose
from tdstack.verify.triton.fork import LIBRARY
from tdstack.verify.triton.judge import Verdict
from tdstack.verify.triton.mend import MendError, mend
from tdstack.wheelhouse.store import Store, sha256_of
from tests.conftest import ROOT
from tests.triton_environments import Venv
from tests.triton_wheels import TAG, TRAP_FILES, real_fork, rewrite, slim_stock

if TYPE_CHECKING:
    from tdstack.lock.model import Lock
    from tests.conftest import IndexServer, MakeWheel

PINNED = load_lock(ROOT)[0].triton_distributed
IMPORT = "import triton; print(triton.__version__, triton.jit.__name__)"
GLUED = "import triton_dist.layers.nvidia, triton_dist.language"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store(folder / "store")


@pytest.fixture(scope="module")
def stock(lock: Lock, folder: Path) -> Path:
    return slim_stock(lock, folder)


@pytest.fixture(scope="module")
def fork(stock: Path, folder: Path) -> Path:
    return real_fork(stock, folder / f"triton_dist-3.4.0-{TAG}.whl")


@pytest.fixture(scope="module")
def taken(fork: Path, store: Store) -> ForkWheel:
    return take_file(fork, store, PINNED)


@pytest.fixture(scope="module")
def trap(folder: Path, make_wheel: MakeWheel) -> Path:
    return make_wheel(folder, "triton_dist", "0.0.0", TRAP_FILES)


@pytest.fixture(scope="module")
def torch(folder: Path, make_wheel: MakeWheel) -> Path:
    """A package that pins Triton as torch 2.8.0 does."""
    head = "Metadata-Version: 2.1\nName: torch\nVersion: 2.8.0\nRequires-Dist: triton==3.4.0\n\n"
    return make_wheel(folder, "torch", "2.8.0", {"torch.py": "", "{info}/METADATA": head})


@pytest.fixture(scope="module")
def shared(folder: Path) -> Venv:
    return Venv(folder / "venv", pip=True)


@pytest.fixture
def venv(shared: Venv) -> Iterator[Venv]:
    yield shared
    shared.restore({})


def verdict(venv: Venv) -> Verdict:
    return diagnose(find_environment(venv.prefix)).judgement.verdict


def symptoms(venv: Venv) -> set[str]:
    found = diagnose(find_environment(venv.prefix)).problems
    return {p.symptom for p in found if p.symptom}


# ------------------------------------------------- the orders of the facts, by pip and by uv


@pytest.mark.parametrize("tool", ["pip", "uv"])
class TestOrders:
    def test_stock_alone(self, venv: Venv, stock: Path, tool: str) -> None:
        venv.install(stock, tool=tool)
        assert verdict(venv) is Verdict.STOCK
        assert venv.run(IMPORT).stdout == "3.4.0 jit\n"

    def test_stock_then_fork_works_and_two_own_the_files(
        self, venv: Venv, stock: Path, fork: Path, tool: str
    ) -> None:
        venv.install(stock, tool=tool)
        venv.install(fork, tool=tool)
        assert venv.run(f"{IMPORT}; {GLUED}").returncode == 0
        found = diagnose(find_environment(venv.prefix))
        assert found.judgement.verdict is Verdict.BROKEN
        assert found.judgement.library == "distributed"
        assert any("own" in p.what and "together" in p.what for p in found.problems)

    def test_stock_then_fork_then_uninstall_triton_is_broken(
        self, venv: Venv, stock: Path, fork: Path, tool: str
    ) -> None:
        venv.install(stock, tool=tool)
        venv.install(fork, tool=tool)
        venv.uninstall("triton", tool=tool)
        assert venv.run(IMPORT).returncode != 0
        assert verdict(venv) is Verdict.BROKEN

    def test_fork_then_stock_stock_wins(
        self, venv: Venv, stock: Path, fork: Path, tool: str
    ) -> None:
        venv.install(fork, tool=tool)
        venv.install(stock, tool=tool)
        assert venv.run(IMPORT).returncode == 0
        assert verdict(venv) is Verdict.BROKEN
        assert "No module named triton._C.libtriton.distributed" in symptoms(venv)

    def test_fork_alone_is_unprotected_and_pip_check_complains(
        self, venv: Venv, fork: Path, torch: Path, tool: str
    ) -> None:
        venv.install(fork, torch, tool=tool)
        assert verdict(venv) is Verdict.UNPROTECTED
        assert "torch 2.8.0 requires triton, which is not installed." in pip_check(venv)

    def test_fork_then_trap_is_broken(self, venv: Venv, fork: Path, trap: Path, tool: str) -> None:
        venv.install(fork, tool=tool)
        venv.install(trap, tool=tool)
        assert venv.run(IMPORT).returncode != 0
        assert verdict(venv) is Verdict.BROKEN

    def test_stock_then_trap_is_broken(
        self, venv: Venv, stock: Path, trap: Path, tool: str
    ) -> None:
        venv.install(stock, tool=tool)
        venv.install(trap, tool=tool)
        assert venv.run(IMPORT).returncode != 0
        assert verdict(venv) is Verdict.BROKEN

    def test_an_editable_fork_behind_stock_is_told(
        self, venv: Venv, stock: Path, fork: Path, tool: str, tmp_path: Path
    ) -> None:
        editable(venv, fork, tmp_path / "checkout")
        venv.install(stock, tool=tool)
        found = diagnose(find_environment(venv.prefix))
        assert found.judgement.verdict is Verdict.BROKEN
        assert found.judgement.library == "stock"
        assert any("editable" in p.what and "goes before it" in p.what for p in found.problems)

    def test_a_folder_left_over_is_an_empty_namespace(
        self, venv: Venv, stock: Path, tool: str
    ) -> None:
        venv.install(stock, tool=tool)
        (venv.site / "triton" / "left.txt").write_text("")
        venv.uninstall("triton", tool=tool)
        assert "has no attribute 'jit'" in venv.run("import triton; triton.jit").stderr
        assert verdict(venv) is Verdict.BROKEN
        assert symptoms(venv) == {"module triton has no attribute jit"}


def editable(venv: Venv, fork: Path, checkout: Path) -> None:
    """What an editable install of the fork leaves: metadata and a line in a .pth file."""
    with zipfile.ZipFile(fork) as archive:
        archive.extractall(checkout)
    info = venv.site / "triton_dist-3.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triton-dist\nVersion: 3.4.0\n")
    url = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    (venv.site / "__editable__.triton_dist-3.4.0.pth").write_text(f"{checkout}\n")
    rows = ["__editable__.triton_dist-3.4.0.pth,,", *(f"{info.name}/{n},," for n in ("METADATA",))]
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,"]) + "\n")


def pip_check(venv: Venv) -> str:
    done = subprocess.run(
        [str(venv.python), "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    return done.stdout


# --------------------------------------------------------------------------------- install


def test_install_takes_the_place_of_stock_and_stays(
    venv: Venv,
    stock: Path,
    torch: Path,
    taken: ForkWheel,
    store: Store,
    server: IndexServer,
    make_wheel: MakeWheel,
    tmp_path: Path,
) -> None:
    venv.install(stock, torch, tool="pip")
    (venv.site / "triton" / "left over.txt").write_text("")
    install(find_environment(venv.prefix), taken, store)
    assert verdict(venv) is Verdict.DISTRIBUTED
    assert venv.run(f"{IMPORT}; {GLUED}").stdout == "3.4.0 jit\n"
    assert pip_check(venv) == "No broken requirements found.\n"
    names = "import importlib.metadata as m; print(m.version('triton'), m.version('triton-dist'))"
    assert venv.run(names).stdout == f"{taken.version} {taken.version}\n"
    points = "import importlib.metadata as m; print(sorted(e.name for e in m.entry_points(group="
    assert venv.run(f"{points}'triton.backends')))").stdout == "['amd', 'nvidia']\n"
    assert os.access(venv.prefix / "bin/proton", os.X_OK)
    before = venv.files()
    # An index that would replace it at every opportunity.
    server.add(stock.name, stock.read_bytes())
    for version in ("3.4.1", "3.5.1"):
        other = make_wheel(tmp_path, "triton", version, {"triton/__init__.py": "bad = 1\n"})
        server.add(other.name, other.read_bytes())
    dist = make_wheel(tmp_path, "triton_dist", "9.0", {"triton/__init__.py": "bad = 1\n"})
    server.add(dist.name, dist.read_bytes())
    needing = "Metadata-Version: 2.1\nName: sglike\nVersion: 1\nRequires-Dist: torch\n"
    sglike = make_wheel(tmp_path, "sglike", "1", {"sg.py": "", "{info}/METADATA": needing + "\n"})
    constraints = str(venv.prefix / "share/tdstack/constraints.txt")
    for words in (
        ["triton==3.4.0"],
        ["-U", "triton==3.4.0"],
        ["-U", "triton"],
        ["-U", "triton-dist"],
        ["-U", str(sglike)],
        ["-U", str(torch), "--upgrade-strategy", "eager"],
    ):
        done = from_index(venv, server, "pip", words)
        assert done.returncode == 0, done.stderr
        if "--upgrade-strategy" not in words:
            done = from_index(venv, server, "uv", words, UV_CONSTRAINT=constraints)
            assert done.returncode == 0, done.stderr
        kept = {n: b for n, b in venv.files().items() if n in before and "dist-info" not in n}
        assert kept == {n: b for n, b in before.items() if "dist-info" not in n}, words
        assert verdict(venv) is Verdict.DISTRIBUTED, words
    # uv leaves it alone for the version that torch pins, even without the constraints.
    for words in (["triton==3.4.0"], ["-U", "triton==3.4.0"]):
        assert from_index(venv, server, "uv", words).returncode == 0
        assert verdict(venv) is Verdict.DISTRIBUTED, words
    # What cannot be had without replacing it is refused, and the message names the constraint.
    for words in (["triton==3.5.1"], ["--force-reinstall", "--no-deps", "triton==3.4.0"]):
        done = from_index(venv, server, "pip", words)
        assert done.returncode != 0
        assert f"(constraint) triton=={taken.version}" in done.stdout + done.stderr
        assert verdict(venv) is Verdict.DISTRIBUTED, words
    done = from_index(venv, server, "uv", ["triton==3.5.1"], UV_CONSTRAINT=constraints)
    assert done.returncode != 0
    assert taken.version in done.stderr


def from_index(
    venv: Venv, server: IndexServer, tool: str, words: list[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    pip = [str(venv.python), "-m", "pip", "install", "--disable-pip-version-check"]
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "-p", str(venv.python)]
    command = [*(pip if tool == "pip" else uv), "--index-url", server.index, *words]
    # No setting of this host may add an index or a constraint of its own.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    clean |= {"PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
    return subprocess.run(
        command, env={**clean, **variables}, capture_output=True, text=True, check=False
    )


def test_install_over_each_kind_of_environment_ends_with_one_triton(
    venv: Venv, stock: Path, fork: Path, trap: Path, taken: ForkWheel, store: Store, tmp_path: Path
) -> None:
    for wheels in ([], [fork], [stock, fork], [fork, stock], [stock, trap]):
        venv.restore({})
        for wheel in wheels:
            venv.install(wheel)
        install(find_environment(venv.prefix), taken, store)
        assert verdict(venv) is Verdict.DISTRIBUTED, wheels
    venv.restore({})
    editable(venv, fork, tmp_path / "checkout")
    venv.install(stock)
    install(find_environment(venv.prefix), taken, store)
    assert verdict(venv) is Verdict.DISTRIBUTED
    assert not (venv.site / "__editable__.triton_dist-3.4.0.pth").exists()


def test_install_again_changes_nothing(venv: Venv, taken: ForkWheel, store: Store) -> None:
    environment = find_environment(venv.prefix)
    install(environment, taken, store)
    before = venv.files()
    install(environment, taken, store)
    assert venv.files() == before


def test_an_install_that_fails_leaves_the_environment_as_it_was(
    venv: Venv, stock: Path, taken: ForkWheel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.install(stock)
    before = venv.files()
    real, calls = os.rename, iter(range(100))

    def rename(source: str, target: str) -> None:
        if next(calls) == 4:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(HostError, match="as it was") as caught:
        install(find_environment(venv.prefix), taken, store)
    assert "No space left" in caught.value.got
    assert venv.files() == before
    assert venv.run(IMPORT).returncode == 0


def test_a_relabelled_wheel_that_lost_its_library_is_rolled_back(
    venv: Venv, stock: Path, taken: ForkWheel, store: Store, tmp_path: Path
) -> None:
    damaged = rewrite(store.path(taken.file), tmp_path / taken.file.name, leave_out=[LIBRARY])
    file = LockedFile(name=damaged.name, sha256=sha256_of(damaged), size=damaged.stat().st_size)
    store.admit(damaged, file, origin="test", move=False)
    venv.install(stock)
    before = venv.files()
    with pytest.raises(IntegrityError, match="the old state is back"):
        install(find_environment(venv.prefix), replace(taken, file=file), store)
    assert venv.files() == before


def test_files_of_another_distribution_are_never_taken(
    venv: Venv, taken: ForkWheel, store: Store, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    plugin = make_wheel(tmp_path, "plugin", "1", {"triton/backends/mine/__init__.py": ""})
    venv.install(plugin)
    before = venv.files()
    with pytest.raises(IntegrityError, match="plugin 1 owns 1 files below triton/") as caught:
        install(find_environment(venv.prefix), taken, store)
    assert "pip uninstall plugin" in caught.value.remedy
    script = make_wheel(tmp_path, "tool", "1", {}, scripts={"proton": "#!python\n"})
    venv.restore({})
    venv.install(script)
    with pytest.raises(IntegrityError, match="proton belongs to tool 1"):
        install(find_environment(venv.prefix), taken, store)
    assert before != venv.files()
    assert (venv.prefix / "bin/proton").read_text().endswith("python\n")


def test_a_venv_that_sees_the_systems_triton_gets_its_own(
    folder: Path, stock: Path, taken: ForkWheel, store: Store
) -> None:
    """As in images whose system Python holds stock Triton."""
    outer = Venv(folder / "outer", pip=True)
    outer.install(stock)
    inner = Venv(folder / "inner", pip=True)
    # What --system-site-packages does, for an outer environment that is a venv itself.
    (inner.site / "outer.pth").write_text(f"import site; site.addsitedir({str(outer.site)!r})\n")
    code = "import site; site.getsitepackages = lambda: [{!r}, {!r}]\n"
    (inner.site / "sitecustomize.py").write_text(code.format(str(inner.site), str(outer.site)))
    before = outer.files()
    environment = find_environment(inner.prefix)
    assert environment.sites == (inner.site, outer.site)
    found = diagnose(environment)
    assert (found.judgement.verdict, found.state.site) == (Verdict.STOCK, outer.site)
    with pytest.raises(MendError):
        mend(environment, "distributed", None)
    install(environment, taken, store)
    found = diagnose(environment)
    assert (found.judgement.verdict, found.state.site) == (Verdict.DISTRIBUTED, inner.site)
    assert found.right
    details = {f.check: f.detail for f in check_triton(found) if f.ok}
    assert details["triton elsewhere"] == f"stock in {outer.site}; not reached"
    assert outer.files() == before
