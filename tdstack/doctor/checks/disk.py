"""Room on disks: for what is downloaded and built, and for the engine's images.

Warnings: a node that only runs what it has needs no room, and the verbs that do say so themselves.
"""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble
from tdstack.doctor.facts import Space
from tdstack.doctor.host import Host, gigabytes


def cache(host: Host) -> Answer | None:
    """Judge the room for tdstack's own store."""
    if host.inside:
        return None
    least = host.thresholds.limits.cache_bytes
    return _room(host.facts.spaces.cache, least, "cache", "tdstack's store")


def images(host: Host) -> Answer | None:
    """Judge the room for the engine's images."""
    if host.inside:
        return None
    least = host.thresholds.limits.engine_bytes
    return _room(host.facts.spaces.engine, least, "images", "the engine's images")


def _room(space: Space, least: int, name: str, what: str) -> Answer | None:
    if space.free is None:
        return None
    evidence = f"{gigabytes(space.free)} free, {gigabytes(least)} needed for a full image"
    if space.writable is False and name == "cache":
        return trouble("warning", "cache-readonly", f"{what} cannot be written", evidence)
    if space.free < least:
        return trouble("warning", f"disk-{name}", f"too little room for {what}", evidence)
    return ok(f"room for {what}", evidence)


CHECKS = (
    Check("disk-cache", "there is room for tdstack's store (`TDSTACK_CACHE`)", cache),
    Check("disk-images", "there is room for the engine's images", images),
)
