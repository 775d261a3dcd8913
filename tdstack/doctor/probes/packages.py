"""Versions of installed packages, by the files of dpkg and rpm, without their programs."""

from __future__ import annotations

import re
import struct
from contextlib import closing, suppress
from pathlib import Path

from tdstack.doctor.probes.tree import Tree

STATUS = "var/lib/dpkg/status"
# rpm's SQLite database, of RHEL 9 and later, Fedora and SUSE; older ones are Berkeley DB.
RPM = ("var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite")
QUESTION = """
SELECT Name.key, Packages.blob FROM Name JOIN Packages USING (hnum)
WHERE Name.key LIKE 'nvidia-%' OR Name.key IN
('podman', 'buildah', 'containerd', 'containerd.io', 'apptainer', 'apptainer-suid',
 'singularity', 'singularity-ce', 'enroot', 'enroot-hardened')
"""
TAG_VERSION, TYPE_STRING = 1001, 6  # rpmtag.h


def installed_versions(tree: Tree) -> dict[str, str]:
    """Return the versions of the installed packages that are asked for, by name."""
    data = tree.data(STATUS, 64 << 20) or b""
    found = versions_of(data.decode("utf-8", "replace"))
    for place in RPM:
        found |= rpm_versions(tree.path(place))
    return found


def versions_of(text: str) -> dict[str, str]:
    """Return the versions of installed packages in dpkg's status file (deb822). Pure."""
    found = {}
    for entry in text.split("\n\n"):
        rows = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        if rows.get("Status", "").endswith(" installed") and "Version" in rows:
            found[rows["Package"]] = rows["Version"]
    return found


def rpm_versions(database: Path) -> dict[str, str]:
    """Return versions in rpm's database; empty where there is none of SQLite."""
    if not database.is_file():
        return {}
    try:
        import sqlite3
    except ImportError:  # small Pythons are built without it
        return {}
    found = {}
    # Immutable: no lock is taken and no journal written, so it can be read by any user.
    where = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
    with suppress(sqlite3.Error), closing(sqlite3.connect(where, uri=True)) as opened:
        for name, blob in opened.execute(QUESTION):
            version = header_version(blob) if isinstance(blob, bytes) else None
            if version:
                found[str(name)] = version
    return found


def header_version(blob: bytes) -> str | None:
    """Return the version in an rpm header as databases hold it, without its magic. Pure.

    The format: two counts, then entries of tag, type, offset and count, then the values.
    """
    if len(blob) < 8:
        return None
    (count,) = struct.unpack_from(">I", blob)
    values = 8 + 16 * count
    if values > len(blob):
        return None
    for at in range(8, values, 16):
        tag, kind, offset, _ = struct.unpack_from(">IIII", blob, at)
        if (tag, kind) == (TAG_VERSION, TYPE_STRING):
            return blob[values + offset :].split(b"\0", 1)[0].decode("utf-8", "replace") or None
    return None


def upstream(version: str | None) -> str | None:
    """Return a Debian version without epoch and revision: 1:2.3-1 is 2.3. Pure."""
    if version is None:
        return None
    return version.partition(":")[2 if ":" in version else 0].rpartition("-")[0] or (
        version.partition(":")[2] or version
    )
