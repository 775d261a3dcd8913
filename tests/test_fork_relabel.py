"""The relabelled wheel: its bytes, how pip and uv install it and let it be, and the way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uv

from tdstack.errors import IntegrityError
from tdstack.fork.acquire import take_file
from tdstack.fork.facts import read_facts
from tdstack.fork.inspection import inspect
from tdstack.fork.model import ForkWheel
from tdstack.fork.repack import repack
from tdstack.lock.io import load_lock
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.verify.installed import Distribution, distributions
from tdstack.verify.triton.fork import LIBRARY
from tdstack.wheelhouse.store import Store, sha256_of
from tests.conftest import ROOT
from tests.odd_wheels import odd_wheel
from tests.triton_wheels import STOCK_FILES, elf, library

if TYPE_CHECKING:
    from tests.conftest import IndexServer, MakeWheel

PINNED = load_lock(ROOT)[0].triton_distributed
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
# Installers take only a wheel for their own Python.
HERE = f"cp{MINOR.replace('.', '')}-cp{MINOR.replace('.', '')}-linux_x86_64"
OWN: dict[str, bytes | str] = {
    LIBRARY: library(python=MINOR),
    "triton/backends/nvidia/bin/ptxas": elf(),
    "triton_dist/with, a comma.py": "x = 1\n",
    "triton/tools/proton": "a file called like a script\n",
}
PTXAS = "triton/backends/nvidia/bin/ptxas"


def a_fork(
    folder: Path,
    more: Mapping[str, bytes | str] = {},
    *,
    metadata: str = "Name: triton-dist\nVersion: 3.4.0\n",
    backwards: bool = False,
    date: tuple[int, int, int, int, int, int] = (2024, 1, 1, 0, 0, 0),
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    return odd_wheel(
        folder,
        {**OWN, **more},
        tag=HERE,
        metadata=metadata,
        backwards=backwards,
        date=date,
        compression=compression,
        programs=[PTXAS],
    )


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# --------------------------------------------------------------------------------- the bytes


def test_the_same_wheel_gives_the_same_bytes_twice_and_in_another_store(
    tmp_path: Path, store: Store
) -> None:
    wheel = a_fork(tmp_path)
    first = take_file(wheel, store, PINNED)
    assert take_file(wheel, store, PINNED) == first, "from what was remembered"
    other = Store(tmp_path / "other")
    assert take_file(wheel, other, PINNED) == first
    for file in (first.file, first.alias):
        assert store.path(file).read_bytes() == other.path(file).read_bytes()


def test_the_same_files_in_another_zip_give_the_same_content_under_another_label(
    tmp_path: Path, store: Store
) -> None:
    one = a_fork(tmp_path / "one")
    for other in (
        a_fork(tmp_path / "backwards", backwards=True),
        a_fork(tmp_path / "dates", date=(1999, 12, 31, 23, 59, 58)),
        a_fork(tmp_path / "stored", compression=zipfile.ZIP_STORED),
    ):
        contents = []
        for wheel in (one, other):
            fork = take_file(wheel, store, PINNED)
            assert fork.version.endswith(sha256_of(wheel)[:8])
            found = members(store.path(fork.file))
            info = f"triton-{fork.version}.dist-info"
            for own in ("METADATA", "PROVENANCE", "RECORD"):
                found.pop(f"{info}/{own}")
            contents.append({n.replace(info, "info"): data for n, data in found.items()})
        assert contents[0] == contents[1]


def test_dates_of_the_source_are_not_in_the_relabelled_wheel(tmp_path: Path, store: Store) -> None:
    dates = set()
    for year in (1999, 2024):
        fork = take_file(a_fork(tmp_path / str(year), date=(year, 1, 1, 0, 0, 0)), store, PINNED)
        with zipfile.ZipFile(store.path(fork.file)) as archive:
            dates |= {i.date_time for i in archive.infolist()}
    assert dates == {time.gmtime(SOURCE_DATE_EPOCH)[:6]}


def test_one_wheel_under_other_tags_is_looked_at_again(tmp_path: Path, store: Store) -> None:
    wheel = a_fork(tmp_path)
    take_file(wheel, store, PINNED)
    lying = wheel.with_name("triton_dist-3.4.0-cp39-cp39-linux_x86_64.whl")
    lying.write_bytes(wheel.read_bytes())
    with pytest.raises(IntegrityError, match="is tagged cp39"):
        take_file(lying, store, PINNED)


@pytest.mark.large
def test_a_large_wheel_is_relabelled_within_ten_seconds(tmp_path: Path, store: Store) -> None:
    more: dict[str, bytes | str] = {"triton/_C/large.bin": os.urandom(110_000_000)}
    wheel = a_fork(tmp_path, more, compression=zipfile.ZIP_STORED)
    assert wheel.stat().st_size > 100_000_000
    begin = time.monotonic()
    fork = take_file(wheel, store, PINNED)
    spent = time.monotonic() - begin
    assert fork.file.size > 100_000_000
    assert spent < 10, f"{spent:.1f} s"
    begin = time.monotonic()
    assert take_file(wheel, store, PINNED) == fork
    assert time.monotonic() - begin < 2, "what is remembered is not read again"


# -------------------------------------------------------------------------- with pip and uv


@dataclass(frozen=True)
class Venv:
    """An environment, and an installer for it."""

    prefix: Path
    tool: str

    @property
    def python(self) -> str:
        return str(self.prefix / "bin/python")

    @property
    def site(self) -> Path:
        return self.prefix / f"lib/python{MINOR}/site-packages"

    def do(self, *words: str, must: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the installer's `words`."""
        if self.tool == "pip":
            command = [sys.executable, "-m", "pip", "--python", self.python, *words]
        else:
            command = [uv.find_uv_bin(), "pip", *words, "--python", self.python]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        environment = kept | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(self.prefix / "uv-cache"),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if must:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ask(self, expression: str) -> object:
        """Evaluate an expression with importlib.metadata as `m` in the environment."""
        code = f"import importlib.metadata as m, json; print(json.dumps({expression}))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def version(self, name: str) -> object:
        return self.ask(f"m.version({name!r})")

    def distribution(self, name: str) -> Distribution:
        (found,) = [d for d in distributions([self.site]) if d.name == name]
        return found


@pytest.fixture(params=["pip", "uv"])
def venv(request: pytest.FixtureRequest, tmp_path: Path) -> Venv:
    prefix = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    return Venv(prefix, request.param)


@pytest.fixture
def fork(tmp_path: Path, store: Store) -> ForkWheel:
    return take_file(a_fork(tmp_path / "given"), store, PINNED)


def placed(fork: ForkWheel, store: Store, folder: Path) -> list[str]:
    """Copy the wheel and its alias out of the store under their own names."""
    folder.mkdir(exist_ok=True)
    for file in (fork.file, fork.alias):
        (folder / file.name).write_bytes(store.path(file).read_bytes())
    return [str(folder / file.name) for file in (fork.file, fork.alias)]


def install(venv: Venv, *wheels: str) -> None:
    venv.do("install", "--no-index", "--no-deps", *wheels)


def test_the_relabelled_wheel_installs_and_satisfies_torch(
    venv: Venv, fork: ForkWheel, store: Store, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    needs = "Metadata-Version: 2.1\nName: torch\nVersion: 2.8.0\nRequires-Dist: triton==3.4.0\n"
    torch = make_wheel(tmp_path, "torch", "2.8.0", {"torch.py": "", "{info}/METADATA": needs})
    install(venv, *placed(fork, store, tmp_path / "out"), str(torch))
    venv.do("check")
    assert venv.version("triton") == fork.version
    assert venv.version("triton-dist") == fork.version
    assert venv.ask("m.requires('triton-dist')") == [f"triton=={fork.version}"]
    backends = "sorted((e.name, e.value) for e in m.entry_points(group='triton.backends'))"
    assert venv.ask(backends) == [["nvidia", "triton.backends.nvidia"]]
    assert (venv.prefix / "bin/proton").exists()
    for path, data in OWN.items():
        assert (venv.site / path).read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.access(venv.site / PTXAS, os.X_OK)
    venv.do("uninstall", *(["-y"] if venv.tool == "pip" else []), "triton")
    done = venv.do("check", must=False)
    assert done.returncode != 0, "the alias tells that the fork is gone"
    assert "triton-dist" in done.stdout + done.stderr


def test_a_later_install_of_what_torch_pins_leaves_it_alone(
    venv: Venv,
    fork: ForkWheel,
    store: Store,
    tmp_path: Path,
    make_wheel: MakeWheel,
    server: IndexServer,
) -> None:
    for version in ("3.4.0", "3.5.1"):
        stock = make_wheel(tmp_path / "stock", "triton", version, STOCK_FILES, tag=HERE)
        server.add(stock.name, stock.read_bytes())
    install(venv, *placed(fork, store, tmp_path / "out"))
    # The server answers no HEAD, with which uv begins.
    index: tuple[str, ...] = ("--index-url", server.index)
    if venv.tool == "uv":
        index = ("--no-index", "--find-links", str(tmp_path / "stock"))
    venv.do("install", *index, "triton==3.4.0")
    assert venv.version("triton") == fork.version
    venv.do("install", *index, "-U", "triton==3.4.0")
    assert venv.version("triton") == fork.version
    assert (venv.site / LIBRARY).read_bytes() == OWN[LIBRARY]
    # Without torch's pin the same index gives another one: the above proves something.
    venv.do("install", *index, "-U", "triton")
    assert venv.version("triton") == "3.5.1"


def test_scripts_and_data_of_the_wheel_go_where_installers_put_them(
    venv: Venv, store: Store, tmp_path: Path
) -> None:
    more: dict[str, bytes | str] = {
        "{data}/scripts/tool": "#!python\n",
        "{data}/data/share/x.txt": "x",
        "{data}/purelib/triton/more.py": "",
    }
    fork = take_file(a_fork(tmp_path / "given", more), store, PINNED)
    install(venv, *placed(fork, store, tmp_path / "out"))
    assert (venv.prefix / "bin/tool").is_file()
    assert (venv.prefix / "share/x.txt").read_text() == "x"
    assert (venv.site / "triton/more.py").is_file()
    assert not list(venv.site.glob("*.data"))


# ------------------------------------------------------------------------------ the way back


def test_an_installed_fork_is_packed_again_byte_for_byte(
    venv: Venv, tmp_path: Path, store: Store
) -> None:
    original = a_fork(tmp_path / "given")
    install(venv, str(original))
    compiled = [venv.python, "-m", "compileall", "-q", str(venv.site / "triton")]
    subprocess.run(compiled, check=True)
    out = tmp_path / "out"
    out.mkdir()
    packed = repack(venv.distribution("triton-dist"), out)
    assert packed.name == original.name
    before, after = members(original), members(packed)
    record = "triton_dist-3.4.0.dist-info/RECORD"
    assert sorted(after.pop(record).splitlines()) == sorted(before.pop(record).splitlines())
    assert after == before
    with zipfile.ZipFile(packed) as archive:
        marked = {i.filename for i in archive.infolist() if i.external_attr >> 16 & 0o100}
    assert marked == {PTXAS}
    assert inspect(read_facts(packed), PINNED.base_version).refused == ()
    assert take_file(packed, store, PINNED).complete


def test_a_relabelled_fork_is_packed_again_with_its_label(
    venv: Venv, fork: ForkWheel, store: Store, tmp_path: Path
) -> None:
    install(venv, *placed(fork, store, tmp_path / "out"))
    packed = repack(venv.distribution("triton"), tmp_path)
    assert packed.name == fork.file.name
    again = take_file(packed, Store(tmp_path / "other"), PINNED)
    assert again.version == fork.version
    assert again.source == fork.source


def _a_data_file(prefix: Path, dist: Path) -> None:
    (prefix / "share").mkdir(exist_ok=True)
    (prefix / "share/x.txt").write_text("x")
    with (dist / "RECORD").open("a") as record:
        record.write("../../../share/x.txt,,\n")


def _a_program(prefix: Path, dist: Path) -> None:
    (prefix / "bin/other").write_text("x")
    with (dist / "RECORD").open("a") as record:
        record.write("../../../bin/other,,\n")


@pytest.mark.parametrize("spoil", [_a_data_file, _a_program])
def test_an_installed_fork_with_files_elsewhere_is_not_packed(
    tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    venv = Venv(tmp_path / "venv", "uv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv.prefix)], check=True)
    install(venv, str(a_fork(tmp_path / "given")))
    spoil(venv.prefix, venv.site / "triton_dist-3.4.0.dist-info")
    with pytest.raises(IntegrityError, match="outside its folder") as caught:
        repack(venv.distribution("triton-dist"), tmp_path)
    assert "--wheel FILE" in caught.value.remedy
