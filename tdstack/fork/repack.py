"""An installed Triton-distributed back into the wheel that it came from, by its RECORD."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from tdstack.errors import IntegrityError
from tdstack.fork.zipcopy import WheelWriter
from tdstack.verify.installed import Distribution

# What installers write themselves.
_OF_INSTALLERS = {
    "INSTALLER",
    "REQUESTED",
    "RECORD",
    "direct_url.json",
    "uv_build.json",
    "uv_cache.json",
}
_MODES = {True: 0o100755 << 16, False: 0o100644 << 16}


def repack(dist: Distribution, folder: Path) -> Path:
    """Write the wheel of an installed distribution into `folder`; return its path.

    Every file must be there with its recorded bytes: the caller has checked that. Console scripts
    are left to whoever installs it.
    Raises: IntegrityError when the distribution has files outside the folder of packages.
    """
    site = dist.info.parent
    info = dist.info.name
    scripts = _console_scripts(dist.info)
    wheel = (dist.info / "WHEEL").read_text()
    name = f"{info.removesuffix('.dist-info')}-{_tag(wheel)}.whl"
    with WheelWriter(folder / name, info) as target:
        for file in sorted(dist.files, key=lambda f: str(f.path)):
            if file.path.suffix == ".pyc":
                continue
            if file.path.parent == dist.info and file.path.name in _OF_INSTALLERS:
                continue
            if site not in file.path.parents:
                if file.path.name in scripts:
                    continue
                raise IntegrityError(
                    f"{dist.label} has files outside its folder of packages",
                    where=str(file.path),
                    remedy="give its wheel with --wheel FILE",
                )
            executable = bool(file.path.stat().st_mode & 0o100)
            inside = str(file.path.relative_to(site))
            target.add(inside, file.path.read_bytes(), _MODES[executable])
    return folder / name


def _console_scripts(info: Path) -> set[str]:
    path = info / "entry_points.txt"
    text = path.read_text() if path.exists() else ""
    sections = re.findall(r"(?ms)^\[(?:console|gui)_scripts\]\s*$(.*?)(?=^\[|\Z)", text)
    return set(re.findall(r"(?m)^([\w.-]+)\s*=", "\n".join(sections)))


def _tag(wheel: str) -> str:
    tags = [t.split("-") for t in re.findall(r"(?m)^Tag: *(\S+)", wheel)]
    columns = [[k for k, _ in groupby(sorted(t[n] for t in tags))] for n in range(3)]
    return "-".join(".".join(column) for column in columns)
