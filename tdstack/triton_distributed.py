"""Triton-distributed as a file: found, fingerprinted, re-labelled, stored.

It is installed under the distribution name `triton` with a local version, so that torch's
pin on triton is satisfied and no later install puts stock Triton over it. The fingerprint in
libtriton.so decides whether a wheel is the fork; its name and version prove nothing.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tdstack.errors import IntegrityError, UpstreamError, UsageError
from tdstack.lock.model import LockedFile, LockedTritonDistributed
from tdstack.pipconf import pip_config, without_credentials
from tdstack.process import find, run
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.stack import ForkWheel
from tdstack.wheelhouse.store import Store, sha256_of

LIBRARY = "triton/_C/libtriton.so"
FINGERPRINT = b"distributed.get_rank"
NAMES = {"triton", "triton-dist"}
REMEDIES = (
    "give its wheel with --wheel FILE or --wheel URL#sha256=HEX, put it into a folder named "
    "with --wheelhouse DIR, or build the control image with --triton stock"
)


def take_wheel(source: str, store: Store) -> ForkWheel:
    """Bring a Triton-distributed wheel into the store, re-labelled as `triton`.

    `source` is a path, or an address that ends in #sha256=HEX.
    Raises: UsageError for a missing file or an address without a hash; IntegrityError for a
    wheel that is not Triton-distributed, with the finding; UpstreamError for an address that
    cannot be read.
    """
    if urlsplit(source).scheme in {"http", "https"}:
        path = _download(source, store)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError("no such wheel", where=f"--wheel {source}", remedy=REMEDIES)
    return relabel(path, store)


def fork_wheel(
    pinned: LockedTritonDistributed, folders: Sequence[Path], store: Store
) -> ForkWheel | None:
    """Return the fork that the host has already: in a wheelhouse folder, or built earlier.

    Raises: UsageError when a folder holds several; IntegrityError for one that is not it.
    """
    given = [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else sorted(folder.glob("*.whl")))
        if re.match(r"triton[_-]dist-|triton-[^-]*\+dist", path.name)
    ]
    if len(given) > 1:
        raise UsageError(
            "the wheelhouse holds more than one Triton-distributed",
            where=", ".join(path.name for path in given),
            remedy="name the one to take with --wheel FILE",
        )
    return relabel(given[0], store) if given else _built_earlier(pinned, store)


def build_from_commit(pinned: LockedTritonDistributed, store: Store) -> ForkWheel:
    """Build the pinned commit into a wheel, once per commit.

    Raises: UpstreamError when its sources cannot be had, with the other ways in.
    """
    if earlier := _built_earlier(pinned, store):
        return earlier
    git = find("git", "apt-get install git, or " + REMEDIES)
    reach = run(
        [git, "ls-remote", "--exit-code", pinned.repository, "HEAD"],
        environment={"GIT_TERMINAL_PROMPT": "0"},
        limit_s=60,
    )
    if reach.returncode:
        raise UpstreamError(
            "the sources of Triton-distributed cannot be reached",
            where=f"{pinned.repository} at {pinned.commit[:12]}",
            got=reach.stderr.strip()[-300:],
            remedy=REMEDIES,
        )
    with tempfile.TemporaryDirectory(dir=store.work()) as folder:
        requirement = f"triton_dist @ git+{pinned.repository}@{pinned.commit}"
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, requirement]
        done = run(command, environment={"MAX_JOBS": str(_jobs())})
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise UpstreamError(
                "Triton-distributed did not build from its sources",
                where=pinned.commit[:12],
                got=done.stderr.strip()[-600:],
                remedy=REMEDIES,
            )
        built = _built(pinned, store)
        built.parent.mkdir(parents=True, exist_ok=True)
        wheel = wheels[0].rename(built.with_name(wheels[0].name))
        # Renamed into place, so that two builds of one commit end alike.
        link = Path(folder, built.name)
        link.symlink_to(wheel.name)
        link.replace(built)
    return relabel(wheel, store)


def relabel(path: Path, store: Store) -> ForkWheel:
    """Rewrite name and version of a fork wheel; every other byte of its files stays.

    The same wheel gives the same bytes; a wheel that carries the label already is taken as
    it is. Raises: IntegrityError for anything that is not the fork.
    """
    name, version, digest = _inspect(path)
    if name == "triton" and "+dist." in version:
        file = LockedFile(name=path.name, sha256=digest, size=path.stat().st_size)
        store.admit(path, file, origin=str(path), move=False)
        return ForkWheel(file, version)
    # Through Version, because PEP 440 drops leading zeros of a label that is all digits.
    label = str(Version(f"{version.split('+')[0]}+dist.{digest[:8]}"))
    tags = "-".join(path.name.removesuffix(".whl").split("-")[-3:])
    with tempfile.TemporaryDirectory(dir=store.work()) as folder:
        out = Path(folder, f"triton-{label}-{tags}.whl")
        _rewrite(path, out, label, digest)
        file = LockedFile(name=out.name, sha256=sha256_of(out), size=out.stat().st_size)
        store.admit(out, file, origin=str(path), move=True)
    return ForkWheel(file, label)


def _inspect(path: Path) -> tuple[str, str, str]:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise IntegrityError("not a wheel", where=str(path), got=str(error)) from error
    if name not in NAMES:
        raise IntegrityError(
            f"{path.name} is not Triton-distributed",
            expected="distribution triton_dist or triton",
            got=str(name),
            remedy=REMEDIES,
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            library = archive.read(LIBRARY) if LIBRARY in names else None
            info = [n.split("/")[0] for n in names if n.endswith(".dist-info/METADATA")]
            if len(info) != 1:
                raise KeyError(f"{len(info)} METADATA files")
            archive.getinfo(f"{info[0]}/RECORD")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError) as error:
        raise IntegrityError(f"{path.name} is not a whole wheel", got=str(error)) from error
    if library is None:
        raise IntegrityError(
            f"{path.name} has no {LIBRARY}",
            expected="a compiled Triton",
            got="a wheel of Python files, like the index's triton-dist 0.0.0, which breaks Triton",
            remedy=REMEDIES,
        )
    if FINGERPRINT not in library:
        raise IntegrityError(
            f"{path.name} is stock Triton, not Triton-distributed",
            where=LIBRARY,
            expected=f"the fork's {FINGERPRINT.decode()} in the library",
            got="no such name",
            remedy=REMEDIES,
        )
    return str(name), str(version), sha256_of(path)


def _rewrite(path: Path, out: Path, label: str, digest: str) -> None:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        old = next(n.split("/")[0] for n in source.namelist() if ".dist-info/" in n)
        new = f"triton-{label}.dist-info"
        rows: list[tuple[str, str, str]] = []
        record = source.read(f"{old}/RECORD").decode().splitlines()
        recorded = {row[0]: (row[1], row[2]) for row in csv.reader(record) if len(row) == 3}
        changed = {
            f"{old}/METADATA": _metadata(source.read(f"{old}/METADATA"), label),
            f"{old}/PROVENANCE": f"file: {path.name}\nsha256: {digest}\n".encode(),
        }
        members = [i for i in source.infolist() if not i.is_dir()]
        for info in members:
            name = re.sub(f"^{re.escape(old)}/", f"{new}/", info.filename)
            if info.filename == f"{old}/RECORD":
                continue
            data = changed.pop(info.filename, None)
            if data is None and info.filename in recorded:
                rows.append((name, *recorded[info.filename]))
            else:
                data = source.read(info) if data is None else data
                rows.append(_row(name, data))
            _put(target, name, source.read(info) if data is None else data, info.external_attr)
        for leftover, data in changed.items():
            name = leftover.replace(f"{old}/", f"{new}/")
            rows.append(_row(name, data))
            _put(target, name, data, 0o644 << 16)
        rows.append((f"{new}/RECORD", "", ""))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        _put(target, f"{new}/RECORD", text.getvalue().encode(), 0o644 << 16)


def _metadata(text: bytes, label: str) -> bytes:
    head, separator, body = text.partition(b"\n\n")
    head = re.sub(rb"(?m)^Name: .*$", b"Name: triton", head)
    head = re.sub(rb"(?m)^Version: .*$", b"Version: " + label.encode(), head)
    return head + separator + body


def _row(name: str, data: bytes) -> tuple[str, str, str]:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", str(len(data))


def _put(target: zipfile.ZipFile, name: str, data: bytes, attributes: int) -> None:
    info = zipfile.ZipInfo(name, time.gmtime(SOURCE_DATE_EPOCH)[:6])
    info.external_attr, info.compress_type = attributes, zipfile.ZIP_DEFLATED
    info.create_system = 3
    # Level 1: a wheel of 150 MB must not take a minute; it is unpacked right after.
    target.writestr(info, data, compresslevel=1)


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
    name = unquote(urlsplit(address).path.rsplit("/", 1)[-1])
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


def _built_earlier(pinned: LockedTritonDistributed, store: Store) -> ForkWheel | None:
    built = _built(pinned, store)
    return relabel(built.resolve(), store) if built.is_file() else None


def _built(pinned: LockedTritonDistributed, store: Store) -> Path:
    return store.root / "built" / pinned.commit / "wheel"


def _jobs() -> int:
    # One compiler process of LLVM-heavy C++ takes about 3 GB.
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, pages * size // 3_000_000_000))
