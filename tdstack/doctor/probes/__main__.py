"""One probe in a process of its own: prints its part as JSON. Only `collect` starts it.

A driver that hangs or a network file system whose server is gone holds up this process alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tdstack.doctor.load import dump
from tdstack.doctor.probes import (
    container,
    driver,
    engines,
    fabric,
    host,
    installed,
    kernel_log,
    libcuda,
    network,
    nvml,
    pci,
    rdma,
    spaces,
)
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

PROBES: dict[str, Callable[[Tree], Part]] = {
    "system": host.system,
    "memory": host.memory,
    "limits": host.limits,
    "clock": host.clock,
    "driver": driver.driver,
    "libraries": driver.libraries,
    "nvml": nvml.nvml,
    "libcuda": libcuda.libcuda,
    "kernel-log": kernel_log.kernel_log,
    "pci": pci.pci,
    "fabric": fabric.fabric,
    "rdma": rdma.rdma,
    "container": container.container,
    "engines": engines.engines,
    "network": network.network,
}


def chosen(name: str, argument: str) -> Callable[[Tree], Part]:
    """Return the probe of a name; `spaces.<name>` and `installed` take a path."""
    if name.startswith("spaces."):
        return partial(spaces.space, name.removeprefix("spaces."), argument)
    if name == "installed":
        return partial(installed.installed, prefix=argument)
    return PROBES[name]


def main(root: str, name: str, argument: str) -> None:
    """Run a probe and print what it found."""
    tree = Tree(Path(root), dict(os.environ))
    # Libraries may print to stdout; the answer goes where they cannot.
    answer = os.dup(1)
    os.dup2(2, 1)
    part = chosen(name, argument)(tree)
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        sections = {path: dump(found) for path, found in part.sections.items()}
        json.dump({"sections": sections, "why": part.why}, out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
