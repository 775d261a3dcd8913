"""Reading an image that somebody else made out of an OCI layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from tdstack.assemble.image import Image, Step
from tdstack.assemble.tar import Blob
from tdstack.errors import HostError
from tdstack.lock.model import Platform


def read_layout(layout: Path) -> Image:
    """Return the one image of an OCI layout whose layers are not compressed.

    Raises: HostError for a platform that tdstack does not build for.
    """
    index = json.loads((layout / "index.json").read_text())
    manifest = _blob(layout, index["manifests"][-1]["digest"])
    config = _blob(layout, manifest["config"]["digest"])
    sizes = {layer["digest"]: layer["size"] for layer in manifest["layers"]}
    return image_of(config, sizes)


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


def _blob(layout: Path, digest: str) -> dict[str, Any]:
    text = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_text()
    data: dict[str, Any] = json.loads(text)
    return data
