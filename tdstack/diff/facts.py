"""What the files of an image say of it: packages, cubins, the lock slice, altered files. Pure."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import posixpath
import re
from collections.abc import Mapping
from email.parser import HeaderParser
from typing import Any

from packaging.utils import canonicalize_name

from tdstack.diff.model import FileFact, Release
from tdstack.dpkg import STATUS, installed
from tdstack.errors import IntegrityError
from tdstack.plan import PREFIX

MANIFEST = f"{PREFIX}/manifest.json"
_SITE = r"(?P<site>.+/(?:site|dist)-packages)"
_INFO = re.compile(_SITE + r"/[^/]+\.dist-info/(?P<name>METADATA|RECORD)")
_BUNDLE = re.compile(_SITE + r"/gemm_allreduce_cubins/(?P<line>[^/]+)/manifest\.json")
_OURS = re.compile(rf"{PREFIX}/lib/python[^/]+/site-packages")


def wanted(path: str) -> bool:
    """Return whether the content of a file is needed for what follows."""
    return path in (MANIFEST, STATUS) or bool(_INFO.fullmatch(path) or _BUNDLE.fullmatch(path))


def manifest_of(texts: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Return the slice of the lock that the image says it was built from, or None.

    Raises: IntegrityError for one that is none.
    """
    if MANIFEST not in texts:
        return None
    found = _json(texts, MANIFEST)
    if not isinstance(found.get("layers"), dict) or not isinstance(found.get("base"), dict):
        raise IntegrityError(
            "the manifest in the image is none",
            where=f"/{MANIFEST}",
            expected="layers, base and more, as the build writes them",
            got=", ".join(found) or "nothing",
        )
    return found


def settings_of(manifest: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return the choices behind an image that its manifest tells."""
    if manifest is None:
        return None
    names = ("cuda", "triton", "torch", "platform", "python", "driver_floor", "ptxas")
    base = manifest["base"]
    return {
        **{name: str(manifest.get(name, "")) for name in names},
        "archs": ", ".join(manifest.get("archs", ())),
        "base": base.get("suite") or base.get("image", ""),
    }


def packages_of(
    texts: Mapping[str, bytes], manifest: Mapping[str, Any] | None
) -> dict[str, Release]:
    """Return the packages that are installed, with the sha256 that the manifest names for them.

    The image's own database of Debian packages and the metadata of its Python packages count,
    not the manifest: what was installed later is seen.
    """
    found = {
        f"debian: {name}": Release((version,))
        for name, version in installed(texts.get(STATUS, b"").decode(errors="replace"))
    }
    hashes = _hashes(manifest)
    for path, text in texts.items():
        match = _INFO.fullmatch(path)
        if not match or match["name"] != "METADATA":
            continue
        head = HeaderParser().parsestr(text.decode(errors="replace"))
        name, version = canonicalize_name(str(head["Name"])), str(head["Version"])
        site = match["site"]
        kind = "python" if _OURS.fullmatch(site) else f"python in /{site}"
        known = hashes.get((name, version), "") if kind == "python" else ""
        old = found.get(f"{kind}: {name}", Release(()))
        versions = tuple(sorted({*old.versions, version}))
        found[f"{kind}: {name}"] = Release(versions, (known,) if known else old.sha256)
    return found


def cubins_of(texts: Mapping[str, bytes]) -> dict[str, str]:
    """Return the cubins by `cu124/sm_90/<variant>` with the sha256 that their manifests name.

    What is listed without a name or a hash is left to `tdstack-verify`.
    """
    found = {}
    for path in texts:
        if match := _BUNDLE.fullmatch(path):
            try:
                for cubin in _json(texts, path)["cubins"]:
                    if not {"name", "arch", "sha256"} <= cubin.keys():
                        continue
                    found[f"{match['line']}/{cubin['arch']}/{cubin['name']}"] = str(cubin["sha256"])
            except (KeyError, TypeError, AttributeError) as error:
                raise IntegrityError(
                    "the manifest of the cubins is none", where=f"/{path}", got=repr(error)
                ) from error
    return found


def altered_of(texts: Mapping[str, bytes], files: Mapping[str, FileFact]) -> dict[str, str]:
    """Return the files that are not those of their Python package's RECORD (PEP 376, 627)."""
    found = {}
    for path, text in texts.items():
        match = _INFO.fullmatch(path)
        if not match or match["name"] != "RECORD":
            continue
        for row in csv.reader(text.decode(errors="replace").splitlines()):
            recorded = _hex(row[1]) if len(row) > 1 else ""
            if not recorded:
                continue
            name = posixpath.normpath(posixpath.join(match["site"], row[0]))
            fact = files.get(name)
            if fact is None:
                found[name] = "missing"
            elif fact.sha256 != recorded:
                found[name] = f"sha256 {fact.sha256[:12] or fact.kind}, recorded {recorded[:12]}"
    return found


def _hex(recorded: str) -> str:
    name, _, digest = recorded.partition("=")
    try:
        return base64.urlsafe_b64decode(digest + "==").hex() if name == "sha256" else ""
    except (binascii.Error, ValueError):
        return ""


def _hashes(manifest: Mapping[str, Any] | None) -> dict[tuple[str, str], str]:
    layers = manifest["layers"].values() if manifest else ()
    return {(p["name"], p["version"]): p["sha256"] for layer in layers for p in layer}


def _json(texts: Mapping[str, bytes], path: str) -> dict[str, Any]:
    try:
        found = json.loads(texts[path])
    except ValueError as error:
        raise IntegrityError(
            "a manifest in the image is no JSON", where=f"/{path}", got=str(error)
        ) from error
    if not isinstance(found, dict):
        raise IntegrityError("a manifest in the image is no object", where=f"/{path}")
    return found
