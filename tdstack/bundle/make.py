"""`invoke bundle`: a plan's images, or its files, with the toolkit, into one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tdstack.attest.keys import PublicKey, Signer
from tdstack.bundle.images import shelf_of_engine, shelf_of_registry
from tdstack.bundle.model import Asked, BundleManifest, Contents
from tdstack.bundle.pack import Packed, packed, write_bundle
from tdstack.bundle.sources import download_tools, is_executable, python_here, tracked_files
from tdstack.bundle.wheelhouse import FOLDER, INPUTS, inputs_of, materials_of, pack_files
from tdstack.engines.base import Engine
from tdstack.lock.io import load_lock
from tdstack.plan import Plan
from tdstack.registry.client import registry_of
from tdstack.registry.reference import Repository
from tdstack.ship.names import full_tag
from tdstack.workspace import Workspace


@dataclass(frozen=True)
class MakeOptions:
    """How to make a bundle: `limit` in bytes for each part, 0 for one file.

    `registry` is where images come from, None for the engine.
    """

    contents: Contents
    out: Path
    limit: int = 0
    registry: Repository | None = None
    signer: Signer | None = None
    keys: tuple[PublicKey, ...] = ()
    tools: bool = True


@dataclass(frozen=True)
class BundleReport:
    """What was written. Sizes are in bytes."""

    contents: Contents
    tag: str
    key: str
    files: tuple[str, ...]
    members: int
    size: int
    signed_by: str

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data."""
        return {"schema": 1, **vars(self), "files": list(self.files)}


def make_bundle(
    workspace: Workspace,
    plan: Plan,
    engine: Engine | None,
    options: MakeOptions,
    say: Callable[[str], None],
) -> BundleReport:
    """Write a bundle.

    Raises: HostError, UpstreamError for what is not there; IntegrityError for bytes that are not
    those of the lock or the registry. Then nothing is left.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(workspace.store.scratch("bundle"))
        files = pack_checkout(workspace.root)
        if options.tools:
            say(f"bringing the tools for Python {python_here()}")
            files += _folder(download_tools(workspace.root, scratch / "tools"), "tools")
        workspace.fetch(inputs_of(plan))
        files += pack_files(inputs_of(plan), INPUTS, workspace.store)
        if options.contents == "images":
            files += _images(workspace, plan, engine, options, scratch / "images", say)
        else:
            workspace.fetch(workspace.verify_present(plan.files))
            files += pack_files(materials_of(plan, workspace.store), FOLDER, workspace.store)
        manifest = BundleManifest(
            schema=1,
            contents=options.contents,
            asked=_asked(plan),
            key=plan.final.key,
            tag=full_tag(plan),
            lock=load_lock(workspace.root)[1],
            tools_python=python_here() if options.tools else "",
            members=[file.member for file in files],
        )
        say(f"writing {options.out}: {len(files)} files")
        size = sum(file.member.size for file in files)
        written = write_bundle(
            manifest, files, options.out, limit=options.limit, signer=options.signer
        )
    return BundleReport(
        options.contents,
        manifest.tag,
        manifest.key,
        tuple(str(path) for path in written),
        len(files),
        size,
        options.signer.public.fingerprint if options.signer else "",
    )


def pack_checkout(root: Path) -> list[Packed]:
    """Return the checkout's tracked files as members."""
    return [
        packed(root / name, f"checkout/{name}", executable=is_executable(root / name))
        for name in tracked_files(root)
    ]


def _images(
    workspace: Workspace,
    plan: Plan,
    engine: Engine | None,
    options: MakeOptions,
    folder: Path,
    say: Callable[[str], None],
) -> list[Packed]:
    folder.mkdir()
    if options.registry:
        registry = registry_of(options.registry)
        shelf_of_registry(plan, registry, options.registry, folder, options.keys, say)
    else:
        assert engine is not None
        shelf_of_engine(plan, engine, workspace, folder, options.signer, say)
    documents = [folder / "oci-layout", folder / "index.json"]
    found = [packed(path, f"images/{path.name}", temporary=True) for path in documents]
    for path in sorted((folder / "blobs" / "sha256").iterdir()):
        member = f"images/blobs/sha256/{path.name}"
        found.append(packed(path, member, sha256=path.name, temporary=True))
    return found


def _folder(paths: Sequence[Path], folder: str) -> list[Packed]:
    return [packed(path, f"{folder}/{path.name}", temporary=True) for path in paths]


def _asked(plan: Plan) -> Asked:
    stack = plan.stack
    return Asked(
        cuda=stack.cuda,
        triton=stack.flavour,
        torch=stack.torch,
        platform=stack.platform,
        python=stack.python,
        base=stack.base,
        archs=stack.archs,
        incomplete=bool(stack.fork and not stack.fork.complete),
    )
