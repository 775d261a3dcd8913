"""What a layer tar became when it was compressed: remembered, so that it is done once.

The record is a few bytes; the compressed blob itself is in the registry, which is asked whether it
still is. So a push that was interrupted goes on without compressing anything again.
"""

from __future__ import annotations

import json
import os

from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import is_digest
from tdstack.ship.compress import MEDIA_TYPES, Compression
from tdstack.wheelhouse.store import Store


class Records:
    """The records of a store, in its folder `compressed/`."""

    def __init__(self, store: Store) -> None:
        self._folder = store.root / "compressed"
        self._folder.mkdir(exist_ok=True)

    def get(self, diff_id: str, compression: Compression) -> Descriptor | None:
        """Return what the layer was compressed to, or None."""
        try:
            digest, size = json.loads((self._folder / _name(diff_id, compression)).read_text())
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if not (isinstance(digest, str) and is_digest(digest) and isinstance(size, int)):
            return None  # cut off by a disk that was full
        return Descriptor(MEDIA_TYPES[compression], digest, size)

    def put(self, diff_id: str, compression: Compression, blob: Descriptor) -> None:
        """Remember what the layer was compressed to."""
        path = self._folder / _name(diff_id, compression)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps([blob.digest, blob.size]))
        temporary.replace(path)


def _name(diff_id: str, compression: Compression) -> str:
    return f"{diff_id.removeprefix('sha256:')}.{compression}"
