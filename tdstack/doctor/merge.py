"""Parts of several probes put together into one record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]
# Which source of GPUs is believed first; /sys sees GPUs that nobody gave to this container.
SOURCES = ("nvml", "cuda", "proc", "pci")


def merge(parts: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]]) -> Record:
    """Return one record of sections and reasons; what was said first stays.

    A section's path may have several steps (`spaces.shm`) and name its source (`gpus@nvml`).
    """
    record: Record = {}
    sources: dict[str, dict[str, Any]] = {}
    why: dict[str, str] = {}
    for sections, reasons in parts:
        for path, found in sections.items():
            name, mark, source = path.partition("@")
            if mark:
                sources.setdefault(name, {})[source] = found
            else:
                _put(record, name.split("."), found)
        for path, reason in reasons.items():
            why.setdefault(path, reason)
    _put(record, ["driver"], sources.get("driver", {}).get("cuda", {}))
    # A driver that answers is there, whatever a container's /proc shows.
    if sources.get("driver", {}).get("cuda", {}).get("present") or "nvml" in sources.get(
        "gpus", {}
    ):
        record["driver"]["present"] = True
    gpus = gpus_of(sources.get("gpus", {}), record.get("driver", {}))
    if gpus is not None:
        record["gpus"] = gpus
    elif count := record.get("pcie", {}).get("nvidia_devices"):
        why.setdefault("gpus", f"{count} are on the bus, and no driver answers for them")
    if "pairs" not in record and "pairs" in sources:
        record["pairs"] = sources["pairs"]["cuda"]
    known = {path for path in why if _known(record, path)}
    if "nvml" not in sources.get("gpus", {}):
        known.discard("gpus")  # the others know little of them
    record["why"] = {path: why[path] for path in sorted(why) if path not in known}
    return record


def gpus_of(found: Mapping[str, Any], driver: Mapping[str, Any]) -> list[Record] | None:
    """Return the GPUs of all sources by their PCI address, or None where none can be believed.

    The first source that answers says which GPUs there are; the others add facts to those.
    """
    believed = next((source for source in SOURCES[:3] if source in found), None)
    if believed is None:
        nobody = driver.get("present") is False and found.get("pci") == []
        return [] if nobody else None
    gpus = [dict(gpu) for gpu in found[believed]]
    for source in SOURCES[SOURCES.index(believed) + 1 :]:
        others = {gpu.get("pci"): gpu for gpu in found.get(source) or ()}
        for gpu in gpus:
            added = others.get(gpu.get("pci")) or {}
            gpu.update({name: value for name, value in added.items() if name not in gpu})
    return gpus


def _put(record: Record, path: list[str], found: Any) -> None:
    for step in path[:-1]:
        record = record.setdefault(step, {})
    held = record.get(path[-1])
    if isinstance(held, dict) and isinstance(found, Mapping):
        for name, value in found.items():
            held.setdefault(name, value)
    elif path[-1] not in record:
        record[path[-1]] = dict(found) if isinstance(found, Mapping) else found


def _known(record: Record, path: str) -> bool:
    """Return whether another probe knows what one did not; lists count as known to their names."""
    here: Any = record
    for step in path.split("."):
        if isinstance(here, list):
            return bool(here) and all(isinstance(e, dict) and step in e for e in here)
        if not isinstance(here, dict) or step not in here:
            return False
        here = here[step]
    return here is not None and not isinstance(here, dict)
