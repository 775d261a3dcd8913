"""RDMA devices, InfiniBand or Ethernet, by /sys/class/infiniband."""

from __future__ import annotations

import os
import re

from tdstack.doctor.hardware import Rdma, RdmaPort
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

FOLDER = "sys/class/infiniband"
_UNSET = re.compile(r"^(fe80:0000:0000:0000|0000:0000:0000:0000):0000:0000:0000:0000$")


def rdma(tree: Tree) -> Part:
    """Read every device and its ports."""
    names = tree.names(FOLDER)
    if names is None:
        if tree.names("sys/class") is None:
            return Part(why={"rdma": "/sys/class cannot be read"})
        return Part({"rdma": ()})  # no RDMA module is loaded
    return Part({"rdma": tuple(_device(tree, name) for name in names)})


def _device(tree: Tree, name: str) -> Rdma:
    folder = f"{FOLDER}/{name}"
    ports = [port for port in tree.names(f"{folder}/ports") or () if port.isdigit()]
    return Rdma(
        name=name,
        guid=tree.text(f"{folder}/node_guid"),
        board=tree.text(f"{folder}/board_id"),
        firmware=tree.text(f"{folder}/fw_ver"),
        driver=_last(tree.target(f"{folder}/device/driver")),
        pci=_last(tree.target(f"{folder}/device")),
        numa_node=tree.number(f"{folder}/device/numa_node"),
        usable=_usable(tree, name),
        ports=tuple(_port(tree, folder, port) for port in sorted(ports, key=int)),
    )


def _usable(tree: Tree, name: str) -> bool:
    nodes = tree.names("sys/class/infiniband_verbs")
    if nodes is None:
        return False  # ib_uverbs is not loaded
    own = [node for node in nodes if tree.text(f"sys/class/infiniband_verbs/{node}/ibdev") == name]
    places = [tree.path(f"dev/infiniband/{node}") for node in own]
    return any(os.access(place, os.R_OK | os.W_OK) for place in places)


def _port(tree: Tree, device: str, name: str) -> RdmaPort:
    folder = f"{device}/ports/{name}"
    rate = re.match(r"[\d.]+", tree.text(f"{folder}/rate") or "")
    gids = tree.names(f"{folder}/gids")
    # An index past the table's end cannot be read; one that is not used is zero.
    read = {at: tree.text(f"{folder}/gids/{at}") for at in gids or ()}
    used = [at for at, gid in read.items() if gid and not _UNSET.match(gid)]
    kinds = [tree.text(f"{folder}/gid_attrs/types/{at}") or "" for at in used]
    return RdmaPort(
        number=int(name),
        state=_word(tree.text(f"{folder}/state")),
        physical=_word(tree.text(f"{folder}/phys_state")),
        layer=tree.text(f"{folder}/link_layer"),
        rate_gbps=float(rate.group()) if rate else None,
        netdev=tree.text(f"{folder}/gid_attrs/ndevs/0"),
        gids=None if gids is None else len(used),
        gids_v2=None if gids is None else sum("v2" in kind for kind in kinds),
        link_downed=tree.number(f"{folder}/counters/link_downed"),
        symbol_errors=tree.number(f"{folder}/counters/symbol_error"),
    )


def _word(text: str | None) -> str | None:
    return text.partition(":")[2].strip() or text if text else None


def _last(link: str | None) -> str | None:
    return link.rpartition("/")[2] if link else None
