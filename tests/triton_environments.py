"""Environments whose Triton tests install, remove and damage; and what is true of them.

The truth is computed from the bytes on disk and the contents of the wheels, by other means than
the code under test.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOTS = ("triton", "triton_dist", "little_kernel")
UV = str(Path(sys.executable).with_name("uv"))


@dataclass(frozen=True)
class Wheels:
    """The wheels that are installed, and the verdict that each deserves when it is alone."""

    stock: Path
    fork: Path
    labelled: Path
    alias: Path
    trap: Path

    def deserves(self) -> Mapping[Path, str]:
        return {
            self.stock: "stock",
            self.fork: "unprotected",
            self.labelled: "distributed",
            self.trap: "broken",
        }


class Venv:
    """A virtual environment made by uv, which is quick and leaves it empty."""

    def __init__(self, prefix: Path, *, pip: bool = False) -> None:
        command = (
            [sys.executable, "-m", "venv"] if pip else [UV, "venv", "-q", "-p", sys.executable]
        )
        subprocess.run([*command, str(prefix)], check=True, capture_output=True)
        self.prefix = prefix
        self.python = prefix / "bin/python"
        minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.site = prefix / "lib" / minor / "site-packages"
        self._own = set(self.site.iterdir())

    def install(self, *wheels: Path, tool: str = "uv") -> None:
        self._tool(tool, "install", *map(str, wheels))

    def uninstall(self, *names: str, tool: str = "uv") -> None:
        self._tool(tool, "uninstall", *names)

    def _tool(self, tool: str, verb: str, *words: str) -> None:
        if tool == "uv":
            command = [UV, "pip", verb, "-q", "-p", str(self.python), "--offline"]
            command += ["--no-deps", "--no-index"] if verb == "install" else []
        else:
            command = [str(self.python), "-m", "pip", verb, "-q", "--disable-pip-version-check"]
            command += ["--no-deps", "--no-index"] if verb == "install" else ["-y"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        # Removing what is not there is no error of the test.
        assert done.returncode == 0 or verb == "uninstall", done.stderr

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-c", code], capture_output=True, text=True, check=False, cwd="/"
        )

    def files(self) -> dict[str, bytes]:
        """Every file that is not the venv's own, by path below the prefix; no bytecode."""
        found = {}
        for path in self._paths():
            found[str(path.relative_to(self.prefix))] = (
                os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            )
        return found

    def restore(self, files: Mapping[str, bytes]) -> None:
        for path in list(self.site.iterdir()):
            if path not in self._own:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._paths():
            path.unlink()
        for name, data in files.items():
            target = self.prefix / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if target.parent.name == "bin" else 0o644)

    def _paths(self) -> list[Path]:
        places = [p for p in self.site.iterdir() if p not in self._own]
        paths = [f for p in places for f in ([p] if not p.is_dir() else p.rglob("*"))]
        paths += self.prefix.glob("bin/proton*")
        paths += self.prefix.glob("share/tdstack/*")
        paths += self.prefix.glob("pip.conf")
        return [p for p in paths if not p.is_dir() and "__pycache__" not in p.parts]


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel that are Triton's."""
    with zipfile.ZipFile(wheel) as archive:
        return {n: archive.read(n) for n in archive.namelist() if n.split("/")[0] in ROOTS}


def truth(venv: Venv, wheels: Wheels) -> str:
    """The verdict that an environment deserves."""
    on_disk = {
        str(p.relative_to(venv.site)): p.read_bytes()
        for root in ROOTS
        for p in (venv.site / root).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    folders = [root for root in ROOTS if (venv.site / root).exists()]
    infos = [p for p in venv.site.glob("triton*.dist-info") if p.is_dir()]
    owners = [info for info in infos if _claims(info)]
    others = [info for info in infos if info not in owners]
    if not (on_disk or folders or infos):
        return "absent"
    if len(owners) != 1 or not _recorded_there(venv.site, owners[0]):
        return "broken"
    version = owners[0].name.removesuffix(".dist-info").split("-", 1)[1]
    if any(f"triton_dist-{version}.dist-info" != info.name for info in others):
        return "broken"
    for wheel, verdict in wheels.deserves().items():
        stem = "-".join(wheel.name.split("-")[:2])
        if owners[0].name == f"{stem}.dist-info":
            return verdict if contents(wheel) == on_disk else "broken"
    return "broken"


def _claims(info: Path) -> bool:
    return any(row.split("/")[0] in ROOTS for row in _rows(info))


def _recorded_there(site: Path, info: Path) -> bool:
    return all((site / row).exists() for row in _rows(info) if not row.endswith(".pyc"))


def _rows(info: Path) -> list[str]:
    try:
        text = (info / "RECORD").read_text()
    except OSError:
        return []
    return [row[0] for row in csv.reader(text.splitlines()) if row]


def remove(venv: Venv, names: Iterable[str]) -> None:
    """Delete files or folders below the folder of packages, as somebody with `rm` would."""
    for name in names:
        path = venv.site / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
