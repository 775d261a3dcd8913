"""`--with sglang`: which CUDA line could hold SGLang and the kernels' plug-in, and why none can.

A layer has to stand on the torch of its line: SGLang pins one torch exactly, as the lock does. The
data is in images/sglang/releases.toml and versions.lock; deciding is pure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tdstack.console import table
from tdstack.errors import UsageError
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock, entry_errors
from tdstack.tags import numbers

OPTIONS = ("sglang",)
RELEASES_FILE = Path("images/sglang/releases.toml")


class Release(BaseModel):
    """One release of SGLang; `cuda` is the major version that its packages are for, if pinned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    torch: str
    transformers: str
    cuda: int | None = None
    plugins: bool
    hooks: bool

    @property
    def hooked(self) -> bool:
        """Return whether it has what the plug-in hooks."""
        return self.plugins and self.hooks


class Releases(BaseModel):
    """The whole of images/sglang/releases.toml, newest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    releases: tuple[Release, ...]


@dataclass(frozen=True)
class Fit:
    """A CUDA line, its torch, and why it cannot hold SGLang; `why` is empty where it can."""

    line: str
    torch: str
    why: str


def fits(lock: Lock, releases: Sequence[Release]) -> list[Fit]:
    """Return what stands between each line and SGLang, lines in order. Pure."""
    return [
        Fit(name, torch := _torch_of(lock, lock.lines[name].set), _why(torch, releases))
        for name in sorted(lock.lines, key=numbers)
    ]


def refuse(root: Path, wanted: Iterable[str], *, as_json: bool) -> None:
    """Show the table, and say why the layer cannot be had; nothing for an empty `wanted`.

    Raises: UsageError for a layer that does not exist, or that no line can hold.
    """
    asked = list(wanted)
    if not asked:
        return
    if unknown := [name for name in asked if name not in OPTIONS]:
        raise UsageError(
            f"no such layer: {', '.join(unknown)}", where="--with", expected=", ".join(OPTIONS)
        )
    releases = load_releases(root)
    found = fits(load_lock(root)[0], releases)
    if able := [fit.line for fit in found if not fit.why]:
        raise UsageError(
            f"SGLang would fit CUDA {', '.join(able)}, but has no recipe yet",
            where="--with sglang",
            remedy="add the layer: CONTRIBUTING.md, Adding a layer",
        )
    if not as_json:
        rows = [[fit.line, fit.torch, fit.why] for fit in found]
        table("SGLang with the plug-in, by CUDA line", ["line", "torch", "why not"], rows)
    newest = next(release for release in releases if release.hooked)
    raise UsageError(
        "no image of this project can hold SGLang with the plug-in",
        where="--with sglang",
        expected=f"a line with the torch of a release that has the plug-in's hooks: "
        f"{_versions(r for r in releases if r.hooked)} with torch {newest.torch}",
        got="; ".join(f"{fit.line} has torch {fit.torch}" for fit in found),
        remedy="bring the kernels to SGLang instead, into its own image or environment: "
        f"`invoke compile --cuda {_line_of(found, newest)} --triton stock`, then "
        "`pip install` the two wheels there (docs/sglang.md); its torch and its Triton stay",
        details={"lines": [vars(fit) for fit in found]},
    )


def load_releases(root: Path) -> tuple[Release, ...]:
    """Read images/sglang/releases.toml.

    Raises: UsageError naming the bad entry.
    """
    path = root / RELEASES_FILE
    try:
        data = tomllib.loads(path.read_text())
        data["schema_version"] = data.pop("schema", None)
        return Releases.model_validate(data).releases
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {RELEASES_FILE}", where=str(path), got=str(error)) from error
    except ValidationError as error:
        raise UsageError(
            f"{RELEASES_FILE} does not fit its schema", where=entry_errors(error)
        ) from error


def _why(torch: str, releases: Sequence[Release]) -> str:
    """Return what a line of this torch lacks, or nothing."""
    same = [release for release in releases if release.torch == torch]
    if any(release.hooked for release in same):
        return ""
    hooked = [release for release in releases if release.hooked]
    wanted = f"{_versions(hooked)}: torch {', '.join(sorted({r.torch for r in hooked}))}"
    if not same:
        return f"{wanted}; no release that was looked at has this torch"
    lacking = (
        "plug-ins, but nothing that ours hooks" if any(r.plugins for r in same) else "no plug-ins"
    )
    return f"{wanted}; with this torch: {_versions(same)}, {lacking}"


def _versions(releases: Iterable[Release]) -> str:
    return "SGLang " + ", ".join(release.version for release in releases)


def _torch_of(lock: Lock, name: str) -> str:
    closures = [c for c in lock.closures if (c.set, c.torch) == (name, "cuda")]
    refs = {ref for closure in closures for ref in closure.layers.get("torch", [])}
    return next((ref.split("==")[1] for ref in sorted(refs) if ref.startswith("torch==")), "none")


def _line_of(found: Sequence[Fit], release: Release) -> str:
    """Return the newest line of the CUDA that a release is for."""
    return max(
        (fit.line for fit in found if int(fit.line.split(".")[0]) == (release.cuda or 13)),
        key=numbers,
        default=found[-1].line,
    )
