"""What dpkg says is installed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

STATUS = "var/lib/dpkg/status"


def installed(status: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of every installed package of a status file (deb822, dpkg(1))."""
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields.get("Version", "")
