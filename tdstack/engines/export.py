"""Reading an image back out of an engine."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from tdstack.assemble.image import Image, Step
from tdstack.assemble.stored import steps_of
from tdstack.assemble.tar import CHUNK, Blob
from tdstack.errors import HostError
from tdstack.lock.model import Platform
from tdstack.wheelhouse.store import sha256_of


def adopt_folder(saved: Path, layout: Path) -> Image:
    """Move the blobs of a `dir:` export into an OCI layout; return the image.

    Raises: HostError for a platform that tdstack does not build for, or for layers that are
    compressed.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((saved / "manifest.json").read_text())
    config = json.loads((saved / manifest["config"]["digest"].split(":")[1]).read_text())
    sizes = {layer["digest"]: layer["size"] for layer in manifest["layers"]}
    if set(sizes) != set(config["rootfs"]["diff_ids"]):
        raise HostError("the engine exported compressed layers", where=str(saved))
    for digest in sizes:
        name = digest.split(":")[1]
        (saved / name).replace(blobs / name)
    return image_of(config, sizes)


def prepare_layout(saved: Path, skip: Collection[str]) -> None:
    """Make an OCI layout that seems to have the layers with these diff ids."""
    blobs = saved / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (saved / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (saved / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    for diff_id in skip:
        (blobs / diff_id.removeprefix("sha256:")).touch()


def adopt_layout(saved: Path, layout: Path) -> Image:
    """Unpack what an engine wrote into a prepared layout; return the image.

    Raises: HostError for a platform that tdstack does not build for, for another compression than
    gzip, or a layer that is not what the image says.
    """
    source, blobs = saved / "blobs" / "sha256", layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    index = json.loads((saved / "index.json").read_text())
    manifest = json.loads((source / _hex(index["manifests"][0])).read_text())
    config = json.loads((source / _hex(manifest["config"])).read_text())
    sizes = {s.blob.digest: s.blob.size for s in steps_of(config["config"].get("Labels") or {})}
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        if layer["digest"] == diff_id:  # left out, and so it kept its name
            continue
        packed, target = source / _hex(layer), blobs / diff_id.removeprefix("sha256:")
        if not layer["mediaType"].endswith("+gzip"):
            raise HostError("the engine exported an odd layer", got=layer["mediaType"])
        with gzip.open(packed) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK)
        packed.unlink()
        if sha256_of(target) != target.name:
            raise HostError("the engine exported another layer than the image's", where=diff_id)
        sizes[diff_id] = target.stat().st_size
    return image_of(config, sizes)


def _hex(descriptor: dict[str, Any]) -> str:
    return str(descriptor["digest"]).removeprefix("sha256:")


def image_of(config: dict[str, Any], sizes: dict[str, int]) -> Image:
    """Return the image that a configuration describes. Pure.

    `sizes` maps diff ids to the sizes of the uncompressed layer tars, in bytes.
    """
    made_by = [h.get("created_by", "") for h in config.get("history", []) if not _empty(h)]
    diff_ids = config["rootfs"]["diff_ids"]
    made_by += [""] * (len(diff_ids) - len(made_by))
    running = config.get("config", {})
    health = (running.get("Healthcheck") or {}).get("Test") or []
    return Image(
        platform=_platform(config),
        steps=tuple(
            Step(Blob(diff_id.removeprefix("sha256:"), sizes[diff_id]), made)
            for diff_id, made in zip(diff_ids, made_by, strict=False)
        ),
        env=dict(pair.split("=", 1) for pair in running.get("Env") or []),
        labels=running.get("Labels") or {},
        user=running.get("User", ""),
        workdir=running.get("WorkingDir", ""),
        command=tuple(running.get("Cmd") or ()),
        healthcheck=tuple(health[1:]),
    )


def _platform(config: dict[str, Any]) -> Platform:
    name = f"{config['os']}/{config['architecture']}"
    for platform in get_args(Platform):
        if platform == name:
            return platform  # type: ignore[no-any-return]
    raise HostError(f"an image for {name} is no base", expected=", ".join(get_args(Platform)))


def _empty(history: dict[str, Any]) -> bool:
    return bool(history.get("empty_layer"))
