"""Hosts that were made up, good and bad: where the files of tests/data/hosts/ come from.

Each bad host is a good one with one thing changed, or a few that go together. What a type of GPU
has is taken from its datasheet. `label` says of each that it is synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tdstack.doctor.facts import Facts
from tests.made_hosts import good, of_containers, of_drivers, of_gpus, of_links, of_systems

HOSTS: Mapping[str, Callable[[], Facts]] = {
    "a100-pcie-2": good.cards,
    "acs-nvlink": of_links.acs_nvlink,
    "acs-on": of_links.acs_on,
    "b200-8": good.b200_open,
    "b200-closed-modules": of_drivers.b200,
    "container-blind": of_containers.blind_container,
    "container-broken": of_containers.broken_container,
    "container-good": good.container,
    "container-hidden": of_containers.hidden_container,
    "container-one-gpu": of_containers.lone_container,
    "container-small-shm": of_containers.small_container,
    "driver-error": of_drivers.ill_driver,
    "driver-mismatch": of_drivers.mismatch,
    "driver-no-library": of_drivers.half_driver,
    "driver-not-loaded": of_drivers.not_loaded,
    "driver-old": of_drivers.old_driver,
    "ecc-errors": of_gpus.bad_memory,
    "engine-cdi-stale": of_containers.stale_cdi,
    "engine-no-toolkit": of_containers.no_toolkit,
    "engine-old": of_containers.old_engine,
    "engine-untold": of_containers.untold_runtime,
    "fabric-manager-down": of_links.manager_down,
    "fabric-manager-missing": of_links.manager_missing,
    "fabric-manager-old": of_links.manager_old,
    "foreign": of_systems.foreign,
    "gh200": good.grace,
    "gpu-fallen-off": of_gpus.fallen_off,
    "gpu-none-shown": of_gpus.none_shown,
    "h100-sxm-8": good.h100_sxm,
    "h20-8": good.h20,
    "hot": of_gpus.hot,
    "l40s-no-p2p": of_links.no_p2p,
    "laptop": of_systems.laptop,
    "limits-low": of_systems.low_limits,
    "mig": of_gpus.mig,
    "mixed": of_gpus.mixed,
    "nvlink-down": of_links.link_down,
    "power-empty-prefix": of_systems.lost_prefix,
    "prefix-only": of_systems.prefix_only,
    "rdma-port-down": of_links.port_down,
    "rdma-roce": of_links.roce,
    "row-remap-failed": of_gpus.worn_memory,
    "slowed": of_gpus.slowed,
    "time-off": of_systems.off_time,
    "time-unset": of_systems.wrong_time,
    "unknown": of_systems.unknown,
    "unreadable": of_systems.unreadable,
    "wsl": of_systems.windows,
}
