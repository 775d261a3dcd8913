"""The registry as a cache of layers: which keys of a plan it has, and bringing them here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from tdstack.attest.bundles import Keyless
from tdstack.attest.keys import public_keys_of
from tdstack.console import Stopwatch, say, warn
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError, UpstreamError, UsageError
from tdstack.plan import Plan
from tdstack.registry.client import registry_of
from tdstack.registry.reference import parse_repository
from tdstack.ship.names import layer_reference
from tdstack.ship.remote import Source
from tdstack.ship.take import Taker, Wanted
from tdstack.wheelhouse.store import Store

VARIABLE = "TDSTACK_REGISTRY"


def named_registry(option: str) -> str:
    """Return the registry that --registry or the environment names.

    Raises: UsageError for neither.
    """
    if name := option or os.environ.get(VARIABLE, ""):
        return name
    raise UsageError(
        "which registry?",
        where="--registry",
        expected="HOST[:PORT]/PATH",
        remedy=f"name it with --registry, or set {VARIABLE}",
    )


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


@dataclass(frozen=True)
class LayerCache:
    """A registry that a build or a plan asks for layers. It may fail: then layers are built."""

    source: Source

    @staticmethod
    def of(
        registry: str, key: str, platform: str, keyless: Keyless | None = None
    ) -> LayerCache | None:
        """Return the cache that the options or the environment name, or None.

        Raises: UsageError.
        """
        name = registry or os.environ.get(VARIABLE, "")
        if not name:
            return None
        repository = parse_repository(name)
        keys = public_keys_of(key)
        return LayerCache(Source(registry_of(repository), repository, platform, keys, keyless))

    def count(self, plan: Plan) -> int:
        """Return how many layers the registry has; none, with a warning, where it fails."""
        return self._unless_away(lambda: layers_in_registry(plan, self.source), 0)

    def take(self, plan: Plan, engine: Engine, store: Store, present: int, watch: Stopwatch) -> int:
        """Bring layers above the lowest `present`; return how many are in the engine then.

        Raises: IntegrityError for a layer that is not what its key says; HostError.
        """
        return self._unless_away(
            lambda: take_layers(plan, self.source, engine, store, present, watch), present
        )

    def _unless_away(self, ask: Callable[[], int], otherwise: int) -> int:
        try:
            return ask()
        except UpstreamError as error:
            warn(f"no layers from {self.source.repository}, they are built: {error.what}")
            for text in filter(None, (error.where, error.got, error.remedy)):
                say(f"  {text}")
            return otherwise
