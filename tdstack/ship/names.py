"""What the images of a plan are called in a registry. Pure.

Layers lie at `PATH/<layer>:<first 20 digits of the key>`, the final image at `PATH:<full tag>`,
which never changes its meaning, and at `PATH:<rolling tag>`, which moves to the latest push.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tdstack.plan import REPOSITORY, Layer, Plan, short_name
from tdstack.registry.reference import Reference, Repository

# cu124-py311-stock-sm_90-<12 digits of the key>, as plan.py writes it.
_FULL = re.compile(r"cu\d+-py\d+-(?:.+-)?[0-9a-f]{12}")
# Where registries without a list of referrers keep one (distribution-spec 1.1), and cosign's
# signatures.
_ATTACHED = re.compile(r"sha256-[0-9a-f]{64}(?:\.[a-z]+)?")


def layer_reference(repository: Repository, layer: Layer) -> Reference:
    """Return where a layer's image lies."""
    return Reference(repository.child(layer.name), layer.key[:20])


def full_tag(plan: Plan) -> str:
    """Return the final image's tag that contains its key."""
    return plan.final.tags[0].removeprefix(f"{REPOSITORY}:")


def rolling_tags(plan: Plan) -> tuple[str, ...]:
    """Return the tags that move to this image: its own, and the one that all platforms share."""
    own = plan.final.tags[1].removeprefix(f"{REPOSITORY}:")
    return tuple(dict.fromkeys((own, short_name(replace(plan.stack, platform="linux/amd64")))))


def is_full(tag: str) -> bool:
    """Return whether a tag is one that contains a key."""
    return _FULL.fullmatch(tag) is not None


def is_attachment(tag: str) -> bool:
    """Return whether a tag belongs to another image, whose digest it names."""
    return _ATTACHED.fullmatch(tag) is not None


def of_one_line(tags: list[str], plan: Plan) -> list[str]:
    """Return the full tags that differ from the plan's in nothing but the key."""
    own = full_tag(plan)[:-12]
    return sorted(tag for tag in tags if is_full(tag) and tag[:-12] == own)
