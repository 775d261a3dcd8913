"""`push`: a plan's layers by key and its final image by tags, without sending anything twice.

Blobs go first, then manifests, then what is attached to them, tags last: a tag never points at
half an image. What an interrupted push brought there is found by the next one.
"""

from __future__ import annotations

from collections.abc import Callable

from tdstack.assemble.image import CONFIG_TYPE, Image
from tdstack.assemble.stored import described
from tdstack.console import Stopwatch
from tdstack.engines.base import Engine
from tdstack.errors import HostError, IntegrityError
from tdstack.plan import LABEL, Layer, Plan
from tdstack.registry.oci import Descriptor, Document, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.ship.blobs import Blobs
from tdstack.ship.compress import MEDIA_TYPES
from tdstack.ship.index import index_of
from tdstack.ship.names import full_tag, layer_reference, rolling_tags
from tdstack.ship.records import Records
from tdstack.ship.resolve import find
from tdstack.ship.send import Sender
from tdstack.ship.target import Place, PushReport, Target
from tdstack.workspace import Workspace

__all__ = ["PushReport", "Pusher", "Target"]


class Pusher:
    """One push of one plan's images out of one engine."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        workspace: Workspace,
        target: Target,
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._engine, self._target = plan, engine, target
        self._root, self._store = workspace.root, workspace.store
        self._say = say
        self._records = Records(self._store)
        self._watch = Stopwatch()
        self._places: dict[str, Place] = {}
        repository = target.repository
        tags = (full_tag(plan), *rolling_tags(plan))
        self._report = PushReport(f"{repository}:{tags[0]}", tags)

    def push(self) -> PushReport:
        """Bring everything into the registry.

        Raises: HostError when the engine lacks the image; IntegrityError when the registry has
        another image under a layer's key, or the engine's bytes are wrong; UpstreamError.
        """
        images = self._images()
        with self._watch.step("ask"):
            there = {layer.name: self._there(layer, image) for layer, image in images}
            absent = self._absent(images)
        if absent:
            self._send(images, absent)
        with self._watch.step("name"):
            for layer, image in images:
                if manifest := there[layer.name]:
                    self._report.layers[layer.name] = "present"
                    self._attach(self._target.repository.child(layer.name), manifest, None)
                else:
                    self._name_layer(layer, image)
                    self._report.layers[layer.name] = "pushed"
            self._name_final(images[-1][1])
        self._report.seconds = self._watch.seconds
        return self._report

    def _images(self) -> list[tuple[Layer, Image]]:
        """Return the plan's images in the engine, from the bottom up; the final one is last."""
        found = []
        for layer in self._plan.layers:
            stored = self._engine.image(layer.ref)
            if stored is None or stored.labels.get(f"{LABEL}.key") != layer.key:
                if layer is self._plan.final:
                    raise HostError(
                        "the image of this plan is not in the engine",
                        where=layer.ref,
                        remedy="run `invoke build` with the same options first",
                    )
                self._say(f"  {layer.name:8} not in the engine; pushed as a part of the next one")
                continue
            found.append((layer, described(stored, layer.ref, self._plan.stack.platform)))
        return found

    def _there(self, layer: Layer, image: Image) -> Descriptor | None:
        """Return the manifest of the layer's image if the registry has just that one."""
        target = self._target
        reference = layer_reference(target.repository, layer)
        found = find(target.registry, reference, self._plan.stack.platform)
        if found is None:
            return None
        descriptor, manifest = found
        if manifest.config.digest != f"sha256:{image.id}":
            if target.force:
                return None
            raise IntegrityError(
                "the registry has another image under this layer's key",
                where=str(reference),
                expected=f"image id {image.id[:12]}, the engine's",
                got=f"image id {manifest.config.sha256[:12]}",
                remedy="find out which of them is right (versions of mmdebstrap, apt and dpkg "
                "other than the lock's give other bytes); --force replaces the registry's",
            )
        wanted = MEDIA_TYPES[target.compression]
        pairs = list(zip(image.steps, manifest.layers, strict=False))
        other = target.recompress and any(blob.media_type != wanted for _, blob in pairs)
        if other or len(manifest.layers) != len(image.steps):
            return None
        for step, blob in pairs:
            self._places.setdefault(step.blob.digest, Place(blob, reference.repository))
        return descriptor

    def _absent(self, images: list[tuple[Layer, Image]]) -> list[str]:
        """Return the diff ids that no repository has, as far as is known, from the bottom up."""
        absent = []
        for layer, image in images:
            repository = self._target.repository.child(layer.name)
            for step in image.steps:
                diff_id = step.blob.digest
                if diff_id in self._places or diff_id in absent:
                    continue
                blob = self._records.get(diff_id, self._target.compression)
                if blob and self._target.registry.has_blob(repository, blob.digest):
                    self._places[diff_id] = Place(blob, repository)
                    self._report.present += blob.size
                else:
                    absent.append(diff_id)
        return absent

    def _send(self, images: list[tuple[Layer, Image]], absent: list[str]) -> None:
        homes = {
            step.blob.digest: self._target.repository.child(layer.name)
            for layer, image in reversed(images)
            for step in image.steps
        }
        layer, image = next(
            pair for pair in images if set(absent) <= {s.blob.digest for s in pair[1].steps}
        )
        sender = Sender(self._target, self._engine, self._store, self._say, self._watch)
        for sent in sender.send(layer.ref, image, {d: homes[d] for d in absent}):
            self._places[sent.diff_id] = sent.place
            if sent.anew:
                self._report.sent += sent.place.blob.size
            else:
                self._report.present += sent.place.blob.size

    def _name_layer(self, layer: Layer, image: Image) -> None:
        reference = layer_reference(self._target.repository, layer)
        document = self._put_manifest(reference.repository, image)
        self._attach(reference.repository, document.descriptor(), None)
        self._target.registry.put_document(reference.repository, reference.tag, document)
        self._say(f"  {layer.name:8} {reference}")

    def _name_final(self, image: Image) -> None:
        target, platform = self._target, self._plan.stack.platform
        repository = target.repository
        manifest = self._put_manifest(repository, image).descriptor()
        self._report.digest, self._report.image_id = manifest.digest, image.id
        self._report.attached = self._attach(repository, manifest, self._plan)
        full, *rolling = self._report.tags
        target.registry.put_document(repository, full, index_of(manifest, platform).document())
        for tag in rolling:
            before = target.registry.document(repository, tag)
            index = index_of(manifest, platform, before).document()
            if before is None or before.digest != index.digest:
                target.registry.put_document(repository, tag, index)

    def _put_manifest(self, repository: Repository, image: Image) -> Document:
        """Make a repository hold an image, without a tag; return its manifest."""
        for step in image.steps:
            self._bring(repository, self._places[step.blob.digest])
        data = image.config()
        config = Descriptor.of(data, CONFIG_TYPE)
        self._target.registry.put_blob(repository, data, config)
        blobs = tuple(self._places[step.blob.digest].blob for step in image.steps)
        document = ImageManifest(config, blobs).document()
        self._target.registry.put_document(repository, document.digest, document)
        return document

    def _bring(self, repository: Repository, place: Place) -> None:
        """Mount a blob from the repository that has it, or carry it over where that is refused."""
        registry, blob = self._target.registry, place.blob
        if place.repository == repository:
            return
        if registry.has_blob(repository, blob.digest):
            self._report.present += blob.size
            return
        if registry.mount_blob(repository, blob, place.repository):
            self._report.mounted += blob.size
            return
        carried = Blobs(registry, self._store)
        registry.put_blob(repository, carried.get(place.repository, blob), blob)
        carried.forget([blob])
        self._report.sent += blob.size

    def _attach(
        self, repository: Repository, manifest: Descriptor, plan: Plan | None
    ) -> tuple[str, ...]:
        if plan is None and self._target.signer is None and self._target.keyless is None:
            return ()
        from tdstack.attest.attach import attach

        return attach(
            self._target.registry,
            repository,
            manifest,
            plan=plan,
            signer=self._target.signer,
            keyless=self._target.keyless,
            engine=self._engine.describe(),
            root=self._root,
            store=self._store,
        )
