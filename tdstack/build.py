"""`invoke build`: plan -> layers in the engine's store, skipping every layer that is there.

Workers write the tars of all missing layers while the engine takes over those that are
finished. A layer gets its name only when it is whole; what an interruption leaves behind is
removed, or reused by content at the next run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.assemble.bytecode import CPythonTree, write_bytecode
from tdstack.assemble.compiler import Compilation, compile_cubins
from tdstack.assemble.cubins import cubins_wheel
from tdstack.assemble.entries import Entry, from_bytes
from tdstack.assemble.image import Image, Step, write_archive, write_layout
from tdstack.assemble.kernels import kernels_wheel
from tdstack.assemble.layer import (
    Part,
    PartJob,
    WheelSource,
    recipe_entries,
    split,
    unpacked_size,
    venv_entries,
    write_part,
)
from tdstack.assemble.stored import BLOBS, blobs_label, health_check, steps_of
from tdstack.assemble.tar import Blob
from tdstack.baseimage import base_blob
from tdstack.console import Stopwatch
from tdstack.cpython import entries_of, unpack
from tdstack.engines.base import Engine
from tdstack.errors import CheckFailed
from tdstack.lock.model import LockedFile
from tdstack.plan import LABEL, PREFIX, REPOSITORY, Layer, Plan, slice_of
from tdstack.report import BuildReport, LayerReport
from tdstack.space import check_space
from tdstack.stack import CPYTHON_PLACE
from tdstack.wheelhouse.store import Store

if TYPE_CHECKING:
    from tdstack.ship.cache import LayerCache

FetchFiles = Callable[[list[LockedFile]], None]


def present_layers(plan: Plan, engine: Engine) -> int:
    """Return how many layers, from the bottom up, the engine holds already."""
    for count in range(len(plan.layers), 0, -1):
        layer = plan.layers[count - 1]
        stored = engine.image(layer.ref)
        if stored and stored.labels.get(f"{LABEL}.key") == layer.key:
            return count
    return 0


class Builder:
    """One build of one plan in one engine. `root` is the checkout.

    `cache` is a registry that may have layers which the engine lacks.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        store: Store,
        root: Path,
        say: Callable[[str], None],
        cache: LayerCache | None = None,
    ) -> None:
        self._plan, self._engine, self._store, self._root = plan, engine, store, root
        self._say, self._cache = say, cache
        self._watch = Stopwatch()
        self._partials: list[str] = []
        assert plan.stack.interpreter is not None  # the base was looked into before the plan
        self._interpreter = plan.stack.interpreter
        self._cpython: CPythonTree | None = None
        self._compilation: Compilation | None = None

    def build(self, fetch: FetchFiles, output: Path | None = None) -> BuildReport:
        """Build what is missing, tag the result, and write it to `output` as an OCI archive.

        Raises: IntegrityError for bytes that are not the lock's; HostError for what this host
        lacks; CheckFailed when a kernel does not compile, or a layer is over its budget, with
        a report per part; TimeLimitError when the compiler hangs.
        """
        present = present_layers(self._plan, self._engine)
        reports = [self._present(layer) for layer in self._plan.layers[:present]]
        if present < len(self._plan.layers):
            # The lock makes a second build of the same plan wait, and find everything there.
            with self._store.locked(f"build-{self._plan.layers[present].key[:32]}"):
                local = present = present_layers(self._plan, self._engine)
                if self._cache and present < len(self._plan.layers):
                    present = self._cache.take(
                        self._plan, self._engine, self._store, present, self._watch
                    )
                reports = [self._present(layer) for layer in self._plan.layers[:present]]
                for report in reports[local:]:
                    report.source = "registry"
                if present < len(self._plan.layers):
                    reports += self._build_missing(present, fetch)
        final = self._plan.final
        for tag in final.tags:
            self._engine.tag(final.ref, tag)
        if output:
            with self._watch.step("write archive"):
                self._write(final, output)
        stored = self._engine.image(final.ref)
        assert stored is not None
        return BuildReport(
            ref=final.tags[0],
            tags=final.tags,
            image_id=stored.id,
            engine=self._engine.describe(),
            layers=reports,
            seconds=self._watch.seconds,
            cubins=self._compilation.as_dict() if self._compilation else None,
        )

    def _present(self, layer: Layer) -> LayerReport:
        stored = self._engine.image(layer.ref)
        blobs = steps_of(stored.labels) if stored else ()
        parent = len(steps_of(self._parent_labels(layer)))
        sizes = {step.made_by: step.blob.size for step in blobs[parent:]}
        budget = layer.recipe.budget_mb * 1_000_000
        return LayerReport(layer.name, layer.key, "local", sum(sizes.values()), budget, sizes)

    def _parent_labels(self, layer: Layer) -> dict[str, str]:
        index = self._plan.layers.index(layer)
        stored = self._engine.image(self._plan.layers[index - 1].ref) if index else None
        return dict(stored.labels) if stored else {}

    def _build_missing(self, present: int, fetch: FetchFiles) -> list[LayerReport]:
        missing = self._plan.layers[present:]
        with self._watch.step("fetch"):
            fetch(self._needed(missing, with_base=present == 0))
        with ExitStack() as stack:
            layout = stack.enter_context(self._layout())
            stack.callback(self._drop_partials)
            if missing[0].name == "base":
                self._unpack_cpython(layout.parent)
            # The kernels come last: they are compiled in the image of the layer below.
            *early, kernels = missing
            wheel = kernels_wheel(self._root, layout.parent, self._store)
            parts = {layer.name: self._parts(layer) for layer in early}
            sizes = {name: [_size(part) for part in group] for name, group in parts.items()}
            sizes[kernels.name] = [kernels.recipe.budget_mb * 1_000_000]
            check_space(sizes, self._store.root, self._engine.storage())
            pool = stack.enter_context(_processes())
            futures = {
                layer.name: self._submit(pool, layer, parts[layer.name], layout) for layer in early
            }
            side = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            image = self._parent_image(present, layout)
            reports = []
            for layer in missing:
                if layer is kernels:
                    with self._watch.step("compile"):
                        own = [wheel, self._compile(wheel, layout.parent)]
                    parts[layer.name] = self._parts(layer, own)
                    futures[layer.name] = self._submit(pool, layer, parts[layer.name], layout)
                with self._watch.step(layer.name):
                    image, report = self._add(
                        layer, image, parts[layer.name], futures[layer.name], side, layout
                    )
                reports.append(report)
                self._say(
                    f"  {layer.name:8} built   {report.size / 1e6:9,.1f} MB  {layer.key[:12]}"
                )
        return reports

    def _unpack_cpython(self, folder: Path) -> None:
        if cpython := self._plan.stack.cpython:
            self._cpython = CPythonTree(folder / "cpython", CPYTHON_PLACE)
            # Containers run as another user.
            self._cpython.folder.mkdir(mode=0o755)
            unpack(self._store.verify(cpython.file), cpython.root, self._cpython.folder)

    def _needed(self, missing: tuple[Layer, ...], with_base: bool) -> list[LockedFile]:
        files = [p.file for layer in missing for p in layer.packages if p.file]
        rootfs = self._plan.stack.rootfs
        if with_base and rootfs and not self._store.has(rootfs.tar):
            files += rootfs.packages
        return files

    @contextmanager
    def _layout(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._store.work()) as folder:
            layout = Path(folder, "layout")
            (layout / "blobs" / "sha256").mkdir(parents=True)
            yield layout

    def _compile(self, wheel: LockedFile, scratch: Path) -> LockedFile:
        plan, store = self._plan, self._store
        self._say(f"  compiling {sum(plan.cubins.values())} cubins: {', '.join(plan.cubins)}")
        made = self._compilation = compile_cubins(
            self._engine, plan, wheel, scratch, self._root, store, self._say
        )
        return cubins_wheel(made.bundle, plan.stack.cuda, self._root, scratch, store)

    def _submit(
        self, pool: ProcessPoolExecutor, layer: Layer, parts: list[Part], layout: Path
    ) -> list[Future[Blob]]:
        return [pool.submit(write_part, self._job(layer, part, layout)) for part in parts]

    def _parts(self, layer: Layer, own: Sequence[LockedFile] = ()) -> list[Part]:
        files = [p.file for p in layer.packages if p.file]
        wheels = [self._source(layer, file) for file in (*files, *own)]
        extra = recipe_entries(layer, self._root)
        if layer.name == "base":
            if self._cpython:
                extra += entries_of(self._cpython.folder, self._cpython.place)
            extra += venv_entries(self._plan.stack.python, self._interpreter, self._plan.site)
            if self._plan.stack.rootfs is None:  # ours makes it together with its user
                extra.append(Entry("home/tdstack", "folder", 0o775))
        if layer.name == "kernels":
            extra.append(self._manifest())
        return split(layer, wheels, extra)

    def _source(self, layer: Layer, file: LockedFile) -> WheelSource:
        path = self._store.path(file)
        return WheelSource(file, path, unpacked_size(path, layer.recipe))

    def _manifest(self) -> Entry:
        text = json.dumps(slice_of(self._plan.stack), indent=1, sort_keys=True) + "\n"
        return from_bytes(f"{PREFIX}/manifest.json", text.encode())

    def _job(self, layer: Layer, part: Part, layout: Path) -> PartJob:
        blobs = layout / "blobs" / "sha256"
        return PartJob(part, layer.recipe, self._plan.site, self._store.root, blobs)

    def _parent_image(self, present: int, layout: Path) -> Image:
        platform = self._plan.stack.platform
        if present:
            stored = self._engine.image(self._plan.layers[present - 1].ref)
            assert stored is not None
            return Image(platform, steps_of(stored.labels), env=stored.env)
        if self._plan.stack.rootfs is None:
            theirs = self._engine.export(self._plan.stack.base, layout)
            return Image(platform, theirs.steps, env=theirs.env)
        with self._watch.step("base root file system"):
            blob = base_blob(self._plan.stack, self._store, layout, self._say)
        return Image(platform=platform, steps=(Step(blob, "base rootfs"),))

    def _add(
        self,
        layer: Layer,
        parent: Image,
        parts: list[Part],
        futures: list[Future[Blob]],
        side: ThreadPoolExecutor,
        layout: Path,
    ) -> tuple[Image, LayerReport]:
        image = replace(parent, env={**parent.env, **layer.env}, labels=layer.labels)
        own: list[Step] = []
        if layer.name == "base":
            self._load_partial(image, layout)
            if self._plan.stack.rootfs:
                own.append(parent.steps[0])
        runnable = self._partials[-1] if layer.name == "base" else self._base_ref()
        wheels = tuple(w for part in parts for w in part.wheels)
        bytecode = side.submit(
            write_bytecode,
            self._engine,
            runnable,
            self._interpreter,
            wheels,
            layer.recipe,
            self._plan.site,
            layout / "blobs" / "sha256",
            self._cpython if layer.name == "base" else None,
        )
        for number, (part, future) in enumerate(zip(parts, futures, strict=True), 1):
            own.append(Step(future.result(), f"tdstack {part.title}"))
            self._say(f"  {part.title:14} written {own[-1].blob.size / 1e6:9,.1f} MB")
            image = replace(image, steps=(*image.steps, own[-1]))
            if number < len(parts):
                self._load_partial(image, layout)
        compiled = bytecode.result()
        if compiled:
            own.append(Step(compiled, f"tdstack {layer.name} bytecode"))
            image = replace(image, steps=(*image.steps, own[-1]))
        report = self._weigh(layer, own)
        image = self._finished(layer, image)
        self._engine.load(layout, image, layer.ref)
        self._forget_blobs(image, layout)
        return image, report

    def _finished(self, layer: Layer, image: Image) -> Image:
        labels = {**layer.labels, BLOBS: blobs_label(image.steps)}
        return replace(image, labels=labels, healthcheck=health_check(layer.name))

    def _weigh(self, layer: Layer, own: list[Step]) -> LayerReport:
        sizes = {step.made_by: step.blob.size for step in own}
        size, budget = sum(sizes.values()), layer.recipe.budget_mb * 1_000_000
        if size > budget:
            raise CheckFailed(
                f"the {layer.name} layer is over its budget",
                where=f"images/{layer.name}/recipe.toml: budget_mb",
                expected=f"at most {budget / 1e6:,.0f} MB",
                got=f"{size / 1e6:,.0f} MB ("
                + ", ".join(f"{name}: {n / 1e6:,.0f}" for name, n in sizes.items())
                + ")",
                remedy="drop files in the recipe, or raise the budget with a reason",
            )
        return LayerReport(layer.name, layer.key, "built", size, budget, sizes)

    def _base_ref(self) -> str:
        return self._plan.layers[0].ref

    def _load_partial(self, image: Image, layout: Path) -> None:
        ref = f"{REPOSITORY}/partial:{self._plan.final.key[:12]}-{len(image.steps)}-{os.getpid()}"
        self._partials.append(ref)
        self._engine.load(layout, image, ref)
        self._forget_blobs(image, layout)

    @staticmethod
    def _forget_blobs(image: Image, layout: Path) -> None:
        # The engine has them now; on a small disk the copies would be what fills it.
        for step in image.steps:
            (layout / "blobs" / "sha256" / step.blob.sha256).unlink(missing_ok=True)

    def _drop_partials(self) -> None:
        for ref in reversed(self._partials):
            self._engine.untag(ref)

    def _write(self, layer: Layer, output: Path) -> None:
        with self._layout() as layout:
            image = self._engine.export(layer.ref, layout)
            write_layout(image, layout, layer.tags[0])
            write_archive(image, layout, output)


@contextmanager
def _processes() -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(max(1, min(4, os.cpu_count() or 1)))
    try:
        yield pool
    finally:
        # A failed build must not go on writing tars nobody will read.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(getattr(pool, "_processes", None) or {}.values()):
            process.terminate() if process.is_alive() else None


def _size(part: Part) -> int:
    return sum(wheel.unpacked for wheel in part.wheels)
