"""Fabric Manager and IMEX: whether they are installed, started at boot, and running."""

from __future__ import annotations

from tdstack.doctor.hardware import Fabric
from tdstack.doctor.probes.inside import process_runs
from tdstack.doctor.probes.packages import installed_versions, upstream
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

PROGRAM = "nv-fabricmanager"
# Debian's has the driver's branch behind it, such as -550; rpm's is spelt otherwise.
PACKAGES = ("nvidia-fabricmanager", "nvidia-fabric-manager")
UNIT = "nvidia-fabricmanager.service"
UNITS = ("etc/systemd/system", "lib/systemd/system", "usr/lib/systemd/system")


def fabric(tree: Tree) -> Part:
    """Look for the program, its package, its unit and its process."""
    part = Part()
    versions = installed_versions(tree)
    own = [held for name, held in versions.items() if name.startswith(PACKAGES)]
    programs = [f"usr/bin/{PROGRAM}", f"usr/sbin/{PROGRAM}", f"usr/local/bin/{PROGRAM}"]
    installed = bool(own) or any(tree.has(place) for place in programs)
    running = process_runs(tree, PROGRAM)
    if running is None:
        part.unknown("fabric.manager_running", "a container does not see its host's processes")
    if installed and not own:
        part.unknown("fabric.manager_version", "no package of dpkg or rpm has it")
    part.sections["fabric"] = Fabric(
        manager_installed=installed or bool(running),
        manager_running=running,
        manager_version=upstream(own[0]) if own else None,
        unit=unit_state(tree),
        imex_running=process_runs(tree, "nvidia-imex"),
    )
    return part


def unit_state(tree: Tree) -> str:
    """Return whether systemd starts the unit: enabled, disabled, masked or absent.

    What `systemctl enable` does is a link in a folder of wants; masking links to /dev/null.
    """
    if tree.target(f"{UNITS[0]}/{UNIT}") == "/dev/null":
        return "masked"
    folders = [name for name in tree.names(UNITS[0]) or () if name.endswith(".wants")]
    if any(tree.has(f"{UNITS[0]}/{folder}/{UNIT}") for folder in folders):
        return "enabled"
    return "disabled" if any(tree.has(f"{folder}/{UNIT}") for folder in UNITS) else "absent"
