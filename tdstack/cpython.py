"""A stand-alone CPython as the base's Python: for wheels whose Python no base has.

The archives of python-build-standalone (`cpython-3.12.*-install_only*.tar.gz`) bring everything
that Python needs but glibc, and run from any folder. One archive is one folder with bin, lib and
include.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tdstack.assemble.entries import Entry, from_file
from tdstack.errors import IntegrityError, UsageError
from tdstack.fork.elf import NotElfError, needs_of
from tdstack.lock.model import LockedFile
from tdstack.stack import CPython
from tdstack.wheelhouse.store import Store, sha256_of

# What no program in the image needs, below the archive's folder.
LEFT_OUT = re.compile(
    r"share/|lib/[^/]+\.a$|lib/pkgconfig/|lib/(tcl|tk|itcl|thread)[^/]*/|"
    r"lib/python[^/]+/(test|idlelib|turtledemo|tkinter|lib2to3|ensurepip|site-packages)/|"
    r"lib/python[^/]+/config-[^/]+/|.*__pycache__/"
)


def take_cpython(source: str, store: Store) -> CPython:
    """Bring an archive into the store. `source` is FILE, or FILE#sha256=HEX.

    Raises: UsageError for a missing file; IntegrityError for another hash, or an archive that is
    no stand-alone CPython.
    """
    name, _, fragment = source.partition("#")
    path = Path(name).expanduser()
    where = f"--cpython {source}"
    if not path.is_file():
        raise UsageError("no such archive", where=where)
    wanted = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if fragment and not wanted:
        raise UsageError("not a hash", where=where, expected="FILE#sha256=HEX (64 digits)")
    digest = sha256_of(path)
    if wanted and wanted[1] != digest:
        raise IntegrityError(
            f"{path.name} is not the file that was asked for",
            where=where,
            expected=f"sha256 {wanted[1]}",
            got=f"sha256 {digest}",
            remedy="get the file again, and do not trust its source if it happens twice",
        )
    found = _inspect(path, digest)
    store.admit(path, found.file, origin=str(path), move=False)
    return found


def unpack(archive: Path, root: str, folder: Path) -> None:
    """Write what an image needs of an archive into `folder`, without the archive's own folder.

    Raises: IntegrityError for a member that would leave it.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = member.name.removeprefix("./").removeprefix(f"{root}/")
                if inside == member.name or member.isdir() or LEFT_OUT.match(inside):
                    continue
                # tarfile's own filter refuses what would lie, or point, outside.
                tar.extract(member.replace(name=inside, deep=False), folder, filter="data")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise IntegrityError(
            f"{archive.name} cannot be unpacked", where=str(archive), got=str(error)
        ) from error


def entries_of(folder: Path, place: str) -> Iterator[Entry]:
    """Yield the files and links below `folder` as entries below `place`."""
    for path in sorted(folder.rglob("*")):
        inside = f"{place}/{path.relative_to(folder)}"
        if path.is_symlink():
            yield Entry(inside, "link", 0o777, target=str(path.readlink()))
        elif path.is_file():
            yield from_file(inside, path, 0o755 if path.stat().st_mode & 0o100 else 0o644)


def _inspect(path: Path, digest: str) -> CPython:
    def refused(why: str) -> IntegrityError:
        return IntegrityError(
            f"{path.name} is no stand-alone CPython",
            where=str(path),
            expected="an archive of one folder with bin/python3.N, its headers and its library, "
            "such as cpython-3.12.*-x86_64-unknown-linux-gnu-install_only.tar.gz",
            got=why,
        )

    try:
        with tarfile.open(path) as tar:
            members = {m.name.removeprefix("./"): m for m in tar}
            found = [
                (PurePosixPath(name).parts[0], match[1])
                for name, m in members.items()
                if m.isfile() and (match := re.fullmatch(r"[^/]+/bin/python(3\.\d+)", name))
            ]
            if len(found) != 1:
                raise refused(f"{len(found)} files bin/python3.N")
            root, python = found[0]
            for needed in (f"include/python{python}/Python.h", f"lib/python{python}/os.py"):
                if f"{root}/{needed}" not in members:
                    raise refused(f"no {needed}")
            stream = tar.extractfile(members[f"{root}/bin/python{python}"])
            assert stream is not None
            needs = needs_of(stream.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise refused(str(error)) from error
    except NotElfError as error:
        raise refused(f"bin/python3.N: {error}") from error
    file = LockedFile(name=path.name, sha256=digest, size=path.stat().st_size)
    return CPython(file=file, python=python, root=root, glibc=needs.glibc, machine=needs.machine)
