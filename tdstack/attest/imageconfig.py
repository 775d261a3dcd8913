"""The configuration of an image, read back from its JSON (image-spec 1.1). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdstack.errors import IntegrityError
from tdstack.plan import LABEL


@dataclass(frozen=True)
class ImageConfig:
    """What checks ask of a configuration; `made_by` has one entry for each of `diff_ids`."""

    labels: Mapping[str, str]
    diff_ids: tuple[str, ...]
    made_by: tuple[str, ...]
    platform: str

    @property
    def layer(self) -> str:
        """Return which layer of a plan this image is; empty for one that is not ours."""
        return self.labels.get(f"{LABEL}.layer", "")

    @property
    def key(self) -> str:
        """Return the content key that the image claims."""
        return self.labels.get(f"{LABEL}.key", "")

    def label_faults(self) -> list[str]:
        """Return where the label that lists the blobs differs from the blobs."""
        try:
            told = json.loads(self.labels.get(f"{LABEL}.blobs", "[]"))
            listed = tuple(f"sha256:{sha256}" for sha256, _size, _made_by in told)
        except (ValueError, TypeError):
            return [f"{LABEL}.blobs cannot be read"]
        return [] if listed == self.diff_ids else [f"{LABEL}.blobs lists other blobs"]


def parse_config(data: bytes, where: str) -> ImageConfig:
    """Read a configuration.

    Raises: IntegrityError for what is none, or has a history of other layers.
    """
    try:
        config: dict[str, Any] = json.loads(data)
        labels = (config.get("config") or {}).get("Labels") or {}
        diff_ids = tuple(str(d) for d in config["rootfs"]["diff_ids"])
        history = config.get("history") or []
        made_by = tuple(str(h.get("created_by", "")) for h in history if not h.get("empty_layer"))
        if len(made_by) != len(diff_ids):
            raise ValueError(f"{len(diff_ids)} layers, a history of {len(made_by)}")
        return ImageConfig(
            {str(name): str(text) for name, text in labels.items()},
            diff_ids,
            made_by,
            f"{config['os']}/{config['architecture']}",
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "the image's configuration cannot be read",
            where=where,
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
