"""Which wheels an installer would choose for a target: tags and versions. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from packaging.tags import Tag, compatible_tags, cpython_tags

from tdstack.lock.model import Platform

MACHINE: dict[Platform, str] = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


@lru_cache(maxsize=16)
def tag_ranks(python: str, platform: Platform, glibc: str) -> dict[Tag, int]:
    """Return every tag that fits the target, with its rank: 0 is the best."""
    version = numbers(python)
    machine = MACHINE[platform]
    minors = range(numbers(glibc)[1], 4, -1)
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in minors]
    platforms += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    platforms.append(f"linux_{machine}")
    abi = f"cp{python.replace('.', '')}"
    tags = [*cpython_tags(version, [abi], platforms)]
    tags += compatible_tags(version, abi, platforms)
    return {tag: position for position, tag in reversed(list(enumerate(tags)))}


def numbers(version: str) -> tuple[int, ...]:
    """Return a dotted version for comparison; () for an empty one."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def line_tag(cuda: str) -> str:
    """Return the short name of a CUDA line: `cu124` for 12.4. Pure."""
    return f"cu{cuda.replace('.', '')}"
