"""Triton-distributed as a file: from a path, an address, a folder or the store; inspected, kept.

What a wheel turned out to be is remembered under its sha256, so that it is read only once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from tdstack.errors import IntegrityError, UpstreamError, UsageError
from tdstack.fork.facts import read_facts
from tdstack.fork.inspection import (
    REMEDIES,
    Inspection,
    inspect,
    of_the_builder,
    python_of,
)
from tdstack.fork.model import ForkWheel
from tdstack.fork.relabel import label_of, provenance_of, write_alias, write_relabelled
from tdstack.lock.model import LockedForkWheel, LockedTritonDistributed
from tdstack.pipconf import pip_config, without_credentials
from tdstack.wheelhouse.store import Store, file_of, sha256_of

# Raise it when an inspection asks more, or a relabelled wheel has other bytes than before.
FORMAT = 4
# Not the alias, which has no library, nor any other distribution's wheel.
_FORKS = re.compile(r"(triton[_-]dist-(?!.*\+dist\..*-py3-none-any)|triton-[^-]*\+dist).*\.whl")


class _Taken(BaseModel):
    """What is remembered of a wheel that was inspected and taken.

    `given` is its file name: the tags are in that alone, so other tags ask for another look.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    given: str
    fork: ForkWheel


def take_wheel(
    source: str, store: Store, pinned: LockedTritonDistributed, *, incomplete: bool = False
) -> ForkWheel:
    """Bring a Triton-distributed wheel into the store, relabelled as `triton`.

    `source` is a path, or an address that ends in #sha256=HEX.
    Raises: UsageError for a missing file or an address without a hash; IntegrityError for a
    wheel that is not Triton-distributed, with the finding; UpstreamError for an address that
    cannot be read.
    """
    return take_file(locate(source, store), store, pinned, incomplete=incomplete)


def locate(source: str, store: Store) -> Path:
    """Return the path of a wheel that is given as a path or as an address with its hash.

    Raises: UsageError, IntegrityError, UpstreamError as take_wheel does.
    """
    if re.match(r"https?://", source, re.IGNORECASE):
        return _download(source, store)
    path = Path(source)
    with contextlib.suppress(RuntimeError):  # ~ of a user that there is not
        path = path.expanduser()
    if not path.is_file():
        raise UsageError("no such wheel", where=f"--wheel {source}", remedy=REMEDIES)
    return path


def take_file(
    path: Path,
    store: Store,
    pinned: LockedTritonDistributed,
    *,
    incomplete: bool = False,
    commit: str = "",
) -> ForkWheel:
    """Inspect a wheel, relabel it and put it and its alias into the store.

    The same wheel gives the same bytes. A wheel that carries the label already keeps it.
    Raises: IntegrityError with the findings for a wheel that is refused, or that has the name of
    a recorded one and other bytes.
    """
    digest = sha256_of(path)
    if not commit:  # what was built from the pinned commit is known by that
        check_recorded(path.name, digest, pinned)
    taken = _remembered(store, digest, pinned.base_version)
    if taken is None or taken.given != path.name or not (taken.fork.complete or incomplete):
        with store.locked(f"fork-{digest[:32]}"):
            inspection = inspect(read_facts(path), pinned.base_version, incomplete=incomplete)
            inspection.require()
            source = source_of(inspection, commit)
            # A relabelled wheel has a name of its own; the lock records what it was made from.
            if not commit:
                check_recorded(source.name, source.sha256, pinned)
            return _keep(path, inspection, store, commit)
    if not commit:
        check_recorded(taken.fork.source.name, taken.fork.source.sha256, pinned)
    return taken.fork


def fork_wheel(
    pinned: LockedTritonDistributed,
    folders: Sequence[Path],
    store: Store,
    *,
    python: str | None = None,
    incomplete: bool = False,
) -> ForkWheel | None:
    """Return the fork that the host has already: in a folder, in the store, or built earlier.

    Of several in a folder the one that the lock records is meant; of those built earlier the one
    for Python `python`.
    Raises: UsageError when it is not clear which; IntegrityError for one that is refused.
    """
    given = [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else sorted(folder.glob("*.whl")))
        if _FORKS.fullmatch(path.name)
    ]
    recorded = {wheel.sha256 for wheel in pinned.wheels}
    if len(given) > 1:
        given = [p for p in given if sha256_of(p) in recorded] or given
    if len(given) > 1:
        raise UsageError(
            "the wheelhouse holds more than one Triton-distributed",
            where=", ".join(path.name for path in given),
            remedy="name the one to take with --wheel FILE, or record it with "
            "`invoke lock --wheel FILE`",
        )
    if given:
        return take_file(given[0], store, pinned, incomplete=incomplete)
    known = [_remembered(store, wheel.sha256, pinned.base_version) for wheel in pinned.wheels]
    forks = [taken.fork for taken in known if taken]
    kept = [f for f in forks if python is None or f.source.python in ("", python)]
    if len(kept) == 1 and (kept[0].complete or incomplete):
        return kept[0]
    return built_earlier(pinned, store, python)


def built_earlier(
    pinned: LockedTritonDistributed, store: Store, python: str | None = None
) -> ForkWheel | None:
    """Return the fork that an earlier build of the pinned commit left, for this or any Python."""
    built = built_link(pinned, store, python or "*")
    for link in sorted(built.parent.glob(built.name)):
        if link.is_file():
            return take_file(link.resolve(), store, pinned, commit=pinned.commit)
    return None


def built_link(pinned: LockedTritonDistributed, store: Store, python: str) -> Path:
    """Return the link that names the wheel which was built from the pinned commit."""
    return store.root / "built" / pinned.commit / f"python{python}"


def by_version(version: str, store: Store) -> ForkWheel | None:
    """Return the fork in the store whose label is `version`."""
    for note in sorted(_notes(store).glob("*.json")):
        taken = _read(note)
        if taken and taken.fork.version == version and _has(store, taken.fork):
            return taken.fork
    return None


def check_recorded(name: str, digest: str, pinned: LockedTritonDistributed) -> None:
    """Compare a wheel with those that the lock records under its name.

    Raises: IntegrityError when they are others.
    """
    known = [wheel for wheel in pinned.wheels if wheel.name == name]
    if known and digest not in {wheel.sha256 for wheel in known}:
        raise IntegrityError(
            f"{name} is not the wheel of that name that the lock records",
            where="versions.lock: triton_distributed.wheels",
            expected=" or ".join(f"sha256 {wheel.sha256}" for wheel in known),
            got=f"sha256 {digest}",
            remedy="upstream's wheels carry one name with different content. If this one is "
            "meant, record it too: `invoke lock --wheel FILE`",
        )


def source_of(inspection: Inspection, commit: str = "") -> LockedForkWheel:
    """Return the wheel as it was built, the way that the lock records it."""
    facts = inspection.facts
    told = provenance_of(facts, commit)
    return LockedForkWheel(
        name=told["file"],
        sha256=told["sha256"],
        size=int(told["size"]),
        commit=told.get("commit", ""),
        python=python_of(facts),
        glibc=facts.needs.glibc if facts.needs else "",
    )


def _keep(path: Path, inspection: Inspection, store: Store, commit: str) -> ForkWheel:
    facts = inspection.facts
    told = provenance_of(facts, commit)
    version = label_of(facts)
    with tempfile.TemporaryDirectory(dir=store.work()) as name:
        wheel = write_relabelled(path, facts, told, Path(name))
        alias = write_alias(version, told, Path(name))
        fork = ForkWheel(
            version=version,
            source=source_of(inspection, commit),
            file=file_of(wheel),
            alias=file_of(alias),
            machine=facts.needs.machine if facts.needs else "",
            complete=not any(m.needed for m in facts.missing),
            requires=tuple(r for r in facts.requires if not of_the_builder(r)),
        )
        store.admit(wheel, fork.file, origin=str(path), move=True)
        store.admit(alias, fork.alias, origin=str(path), move=True)
        note = Path(name, "note")
        taken = _Taken(format=FORMAT, given=path.name, fork=fork)
        note.write_text(taken.model_dump_json(indent=1))
        _notes(store).mkdir(exist_ok=True)
        note.replace(_notes(store) / f"{facts.sha256}.json")
    return fork


def _remembered(store: Store, digest: str, base_version: str) -> _Taken | None:
    taken = _read(_notes(store) / f"{digest}.json")
    if taken is None or taken.fork.version.partition("+")[0] != base_version:
        return None
    return taken if _has(store, taken.fork) else None


def _has(store: Store, fork: ForkWheel) -> bool:
    return store.has(fork.file) and store.has(fork.alias)


def _read(note: Path) -> _Taken | None:
    try:
        taken = _Taken.model_validate(json.loads(note.read_text()))
    except (OSError, ValueError, ValidationError):
        return None
    return taken if taken.format == FORMAT else None


def _notes(store: Store) -> Path:
    return store.root / "forks"


def _download(source: str, store: Store) -> Path:
    import requests

    address, _, fragment = source.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if not match:
        raise UsageError(
            "an address of a wheel needs its hash",
            where=f"--wheel {without_credentials(address)}",
            expected="URL#sha256=HEX (64 digits)",
        )
    try:
        name = unquote(urlsplit(address).path.rsplit("/", 1)[-1])
    except ValueError:  # no address at all
        name = ""
    if "/" in name or not name.endswith(".whl"):
        raise UsageError(
            "the address does not end in the file name of a wheel",
            where=f"--wheel {without_credentials(address)}",
            expected="URL/NAME.whl#sha256=HEX",
        )
    folder = store.work() / match.group(1)
    folder.mkdir(exist_ok=True)
    target = folder / name
    if not target.exists():
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            verify = pip_config().certificate or True
            with requests.get(address, stream=True, timeout=(20, 60), verify=verify) as answer:
                answer.raise_for_status()
                with partial.open("wb") as out:
                    for chunk in answer.iter_content(1 << 20):
                        out.write(chunk)
        except requests.RequestException as error:
            partial.unlink(missing_ok=True)
            raise UpstreamError(
                "the wheel cannot be downloaded",
                where=without_credentials(address),
                got=without_credentials(str(error))[:300],
                remedy=REMEDIES,
            ) from error
        partial.replace(target)
    got = sha256_of(target)
    if got != match.group(1):
        target.unlink()
        raise IntegrityError(
            f"{target.name} is not the file that was asked for",
            where=without_credentials(address),
            expected=f"sha256 {match.group(1)}",
            got=f"sha256 {got}",
            remedy="do not trust the address; " + REMEDIES,
        )
    return target
