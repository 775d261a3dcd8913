"""User data for cloud-init, from the cluster file. Standard library only."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Final

from tdstack.cloud_init.settings import Settings
from tdstack.cluster import Cluster
from tdstack.errors import UsageError
from tdstack.templates import fill

FOLDER: Final = Path("scripts/cloud-init")
HEAD: Final = "#cloud-config\n"
MAX_BYTES: Final = 16 << 10
"""Of user data: what the smallest of the clouds take."""


def render(
    root: Path, cluster: Cluster, settings: Settings, key: bytes = b"", apt_sources: bytes = b""
) -> str:
    """Return the user data. Equal input gives equal text.

    `key` is a public key that must have signed the image; `apt_sources` deb822 sources of packages.
    Raises: UsageError for a secret in one of them, and for user data that are too large.
    """
    if b"PRIVATE KEY" in key or (key and b"PUBLIC KEY" not in key):
        raise UsageError("this is no public key", where="--key", expected="PUBLIC KEY, PEM")
    # RFC 3986 would allow it, apt too, and every user of the machine could read it.
    if any(b"@" in word for word in apt_sources.split() if b"://" in word):
        raise UsageError("a source has a password in its address", where="--apt-sources")
    values = {
        "CLUSTER": json.dumps(cluster.render()),  # as people can read it
        "SETTINGS": json.dumps(settings.render()),
        "KEY": _packed(key),
        "APT_SOURCES": _packed(apt_sources),
        "PROVISION": _packed((root / FOLDER / "provision.sh").read_bytes()),
    }
    text = HEAD + fill((root / FOLDER / "user-data.yaml").read_text(), values)
    if len(text.encode()) > MAX_BYTES:
        raise UsageError(
            "the user data are too large",
            expected=f"at most {MAX_BYTES} bytes",
            got=f"{len(text.encode())} bytes",
            remedy="put apt's sources into the image of the machine",
        )
    return text


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
