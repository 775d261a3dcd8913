"""Versions of installed packages, by dpkg's own file. rpm's database is binary and not read."""

from __future__ import annotations

import re

from tdstack.doctor.probes.tree import Tree

STATUS = "var/lib/dpkg/status"


def installed_versions(tree: Tree) -> dict[str, str]:
    """Return the versions of the installed packages, by name; empty where dpkg is not used."""
    data = tree.data(STATUS, 64 << 20) or b""
    return versions_of(data.decode("utf-8", "replace"))


def versions_of(text: str) -> dict[str, str]:
    """Return the versions of installed packages in dpkg's status file (deb822). Pure."""
    found = {}
    for entry in text.split("\n\n"):
        rows = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        if rows.get("Status", "").endswith(" installed") and "Version" in rows:
            found[rows["Package"]] = rows["Version"]
    return found


def upstream(version: str | None) -> str | None:
    """Return a Debian version without epoch and revision: 1:2.3-1 is 2.3. Pure."""
    if version is None:
        return None
    return version.partition(":")[2 if ":" in version else 0].rpartition("-")[0] or (
        version.partition(":")[2] or version
    )
