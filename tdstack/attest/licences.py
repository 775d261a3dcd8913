"""What wheels say of their licences (core metadata 2.4), as far as the wheels are in the store."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser

from tdstack.attest.contents import Material
from tdstack.lock.model import LockedFile
from tdstack.wheelhouse.store import Store

# Some wheels put a whole licence text into the field that is meant for a name.
LONGEST = 100


def licences_of(materials: Iterable[Material], store: Store) -> dict[str, str]:
    """Return wheel sha256 -> its licence, as an SPDX expression or a name.

    Wheels that are not in the store, or do not say, are left out.
    """
    found = {}
    for material in materials:
        if material.kind == "wheel" and material.sha256:
            file = LockedFile(name=material.file, sha256=material.sha256, size=1)
            if text := _licence(_metadata(store.path(file).as_posix())):
                found[material.sha256] = text
    return found


def _metadata(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if n.count("/") == 1]
            name = next((n for n in names if n.endswith(".dist-info/METADATA")), "")
            return wheel.read(name).decode("utf-8", "replace") if name else ""
    except (OSError, zipfile.BadZipFile):
        return ""


def _licence(metadata: str) -> str:
    headers = HeaderParser().parsestr(metadata)
    for field in ("License-Expression", "License"):
        text = " ".join(str(headers.get(field, "")).split())
        if text and len(text) <= LONGEST and text.upper() != "UNKNOWN":
            return text
    classifiers = [str(c) for c in headers.get_all("Classifier", [])]
    names = [c.rsplit(" :: ", 1)[-1] for c in classifiers if c.startswith("License :: ")]
    return names[0] if len(names) == 1 else ""
