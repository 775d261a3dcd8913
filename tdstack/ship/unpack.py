"""A compressed blob -> the tar of a layer in an OCI layout, under the name of its own hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

from tdstack.errors import IntegrityError
from tdstack.registry.oci import Descriptor
from tdstack.ship.compress import decompressed


def unpack(source: Path, blob: Descriptor, diff_id: str, size: int | None, folder: Path) -> int:
    """Write the tar in `source` to `folder` under the hex digits of `diff_id`; return its size.

    `size` is the tar's in bytes, where it is known: more is not written, whatever the blob holds.
    Raises: IntegrityError when the tar is another one, or the blob not in its format.
    """
    temporary = folder / f".unpack-{uuid4().hex[:12]}"
    digest, written = hashlib.sha256(), 0
    try:
        with source.open("rb") as stream, temporary.open("wb") as out:
            for piece in decompressed(stream, blob.media_type):
                digest.update(piece)
                written += len(piece)
                if size is not None and written > size:
                    raise _other(blob, diff_id, size, f"more than {size} bytes")
                out.write(piece)
        if f"sha256:{digest.hexdigest()}" != diff_id or size not in (None, written):
            raise _other(blob, diff_id, size, f"sha256:{digest.hexdigest()}, {written} bytes")
        temporary.replace(folder / diff_id.removeprefix("sha256:"))
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _other(blob: Descriptor, diff_id: str, size: int | None, got: str) -> IntegrityError:
    return IntegrityError(
        "a blob of the registry holds another layer than the image names",
        where=blob.digest,
        expected=diff_id if size is None else f"{diff_id}, {size} bytes",
        got=got,
    )
