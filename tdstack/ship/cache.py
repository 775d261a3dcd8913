"""The registry as a cache of layers: which keys of a plan it has, and bringing them here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tdstack.console import Stopwatch
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError
from tdstack.plan import Plan
from tdstack.ship.names import layer_reference
from tdstack.ship.remote import Source
from tdstack.ship.take import Taker, Wanted
from tdstack.wheelhouse.store import Store


def layers_in_registry(plan: Plan, source: Source) -> int:
    """Return how many layers, from the bottom up, the registry has by their keys.

    Each is an image of its own with all layers below it, so the topmost one decides.
    Raises: UpstreamError when the registry cannot be asked.
    """
    for count in range(len(plan.layers), 0, -1):
        reference = layer_reference(source.repository, plan.layers[count - 1])
        if source.registry.head(reference.repository, reference.identifier):
            return count
    return 0


def take_layers(
    plan: Plan,
    source: Source,
    engine: Engine,
    store: Store,
    present: int,
    say: Callable[[str], None],
    watch: Stopwatch,
) -> int:
    """Bring the longest prefix that the registry has into the engine; return its length.

    `present` layers are there already. What the registry has above them is taken whole, each
    layer compared with the plan, or not at all.
    Raises: IntegrityError for a layer that is not what its key says; UpstreamError; HostError.
    """
    count = layers_in_registry(plan, source)
    if count <= present:
        return present
    wanted = []
    for layer in plan.layers[present:count]:
        remote = source.layer(plan, layer)
        if remote:  # one that was removed below the topmost is no loss: that has its blobs
            wanted.append(Wanted(remote, layer.ref))
    if not wanted:
        return present
    held = engine.image(plan.layers[present - 1].ref) if present else None
    taker = Taker(plan, engine, store, source.registry, _strictly, say, watch)
    taker.take(wanted, held.diff_ids if held else ())
    return count


def _strictly(error: IntegrityError) -> NoReturn:
    raise error
