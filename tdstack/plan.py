"""Stack -> plan: layers with content keys, labels and tags. Pure but for reading the recipes.

A layer's key is the sha256 over everything that decides its bytes: its packages' hashes,
its recipe, its parent's key, the target, and the format below. Equal keys mean equal
layers, so a store, a registry and a fresh build are interchangeable. (One exception is
announced when it happens: other versions of mmdebstrap, apt and dpkg than the lock's lay out
the same Debian packages in other bytes.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tdstack.cpython import LEFT_OUT as CPYTHON_LEFT_OUT
from tdstack.lock.model import Arch, LayerName, LockedFile
from tdstack.recipe import Recipe, load_recipe, tree_digest
from tdstack.rootfs import HOOKS, LEFT_OUT, SOURCE_DATE_EPOCH
from tdstack.stack import LAYER_ORDER, Package, Stack
from tdstack.tags import line_tag
from tdstack.variants import variant_names
from tdstack.verify.triton.constraints import constraints_path, constraints_text, pip_conf_text

# Raise it when tdstack/assemble writes other bytes for the same input: every key moves.
FORMAT = 1
PREFIX = "opt/tdstack"
REPOSITORY = "localhost/tdstack"
LABEL = "io.tdstack"
# One part of a layer holds at most this much unpacked, so that pulls run side by side.
PART_BYTES = 1_900_000_000


@dataclass(frozen=True)
class Layer:
    """One layer of a plan; every layer is an image of its own, on top of its parent.

    `texts` are files that follow from the stack: path without a leading slash -> content.
    `recipe_digest` is the sha256 over names, modes and bytes of what the checkout brings.
    """

    name: LayerName
    key: str
    parent: str | None
    packages: tuple[Package, ...]
    recipe: Recipe
    env: dict[str, str]
    labels: dict[str, str]
    tags: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    recipe_digest: str = ""

    @property
    def ref(self) -> str:
        """Return the image name under which an engine keeps the layer."""
        return f"{REPOSITORY}/{self.name}:{self.key[:20]}"


@dataclass(frozen=True)
class Plan:
    """Everything that a build does, before anything is touched.

    `cubins` says how many kernels are compiled for each architecture.
    """

    stack: Stack
    layers: tuple[Layer, ...]
    site: str
    lock_slice: str
    cubins: dict[Arch, int]

    @property
    def final(self) -> Layer:
        """Return the last layer: the image that users run."""
        return self.layers[-1]

    @property
    def files(self) -> list[LockedFile]:
        """Return every file that the plan needs from outside, Debian packages included."""
        found: list[LockedFile] = [p.file for p in self.stack.all_packages() if p.file]
        return [*found, *(self.stack.rootfs.packages if self.stack.rootfs else ())]

    def as_dict(self) -> dict[str, object]:
        """Return the plan as JSON-ready data (docs/plan.md describes it)."""
        return {
            "schema": 1,
            "cuda": self.stack.cuda,
            "experimental": self.stack.line.experimental,
            "notes": list(self.stack.notes),
            "triton": self.stack.flavour,
            "torch": self.stack.torch,
            "platform": self.stack.platform,
            "python": self.stack.python,
            "base": self.stack.base,
            "driver_floor": self.stack.line.driver_floor,
            "archs": list(self.stack.archs),
            "cubins": self.cubins,
            "lock_slice": self.lock_slice,
            "layers": [_layer_dict(layer) for layer in self.layers],
        }


def make_plan(stack: Stack, root: Path) -> Plan:
    """Lay the stack out in layers. `root` is the checkout that holds images/ and kernels/.

    Raises: UsageError for a recipe that does not fit its schema, or an architecture that the
    kernels do not know.
    """
    site = f"{PREFIX}/lib/python{stack.python}/site-packages"
    values = {"site": site, "ptxas": stack.line.ptxas, "driver_floor": stack.line.driver_floor}
    lock_slice = slice_digest(slice_of(stack))
    layers: list[Layer] = []
    env: dict[str, str] = {}
    for name in LAYER_ORDER:
        packages = stack.packages.get(name, ())
        if name == "torch" and not packages:
            continue
        recipe = load_recipe(root, name)
        filled = recipe.filled(values)
        texts = _held_triton(stack) if name == "triton" else {}
        env = {**env, **_absolute(filled.env)}
        if texts:
            env["UV_CONSTRAINT"] = str(constraints_path(Path(f"/{PREFIX}")))
        parent = layers[-1].key if layers else None
        sources = [root / "images" / name, *(root / t.source for t in recipe.tree)]
        if name == "kernels":
            sources.append(root / "kernels")
        recipe_digest = tree_digest(sources, root)
        question: dict[str, object] = {
            "format": FORMAT,
            "layer": name,
            "parent": parent,
            "python": stack.python,
            "platform": stack.platform,
            "epoch": SOURCE_DATE_EPOCH,
            "recipe": recipe_digest,
            "filled": filled.model_dump(mode="json"),
            "packages": [_package_dict(p) for p in packages],
        }
        if texts:
            question["texts"] = texts
        if name == "base":
            question["base"] = _base_question(stack)
            if stack.cpython:
                sha256, left_out = stack.cpython.file.sha256, CPYTHON_LEFT_OUT.pattern
                question["cpython"] = {"sha256": sha256, "left_out": left_out}
        if name == "kernels":
            question["slice"] = lock_slice
            # Triton and ptxas, which decide the cubins' bytes too, are in the parent's key.
            question["archs"] = stack.archs
            # It writes its own name and version into the wheel that it builds.
            question["backend"] = metadata.version("hatchling")
        key = _digest(question)
        layers.append(
            Layer(
                name=name,
                key=key,
                parent=parent,
                packages=packages,
                recipe=filled,
                env=env,
                labels=_labels(stack, name, key, parent, recipe, lock_slice),
                tags=_tags(stack, key) if name == LAYER_ORDER[-1] else (),
                texts=texts,
                recipe_digest=recipe_digest,
            )
        )
    cubins = {arch: len(names) for arch, names in variant_names(root, stack.archs).items()}
    return Plan(stack, tuple(layers), site, lock_slice, cubins)


def _held_triton(stack: Stack) -> dict[str, str]:
    """Return the files that keep Triton-distributed where it is, or none for stock."""
    if stack.flavour == "stock":
        return {}
    version = next(p.version for p in stack.packages["triton"] if p.name == "triton")
    prefix = Path(f"/{PREFIX}")
    path = constraints_path(prefix)
    texts = {path: constraints_text(version), prefix / "pip.conf": pip_conf_text("", path)}
    return {str(place).lstrip("/"): text for place, text in texts.items()}


def slice_of(stack: Stack) -> dict[str, object]:
    """Return the part of the lock that this stack uses: what the image says of itself."""
    rootfs, fork = stack.rootfs, stack.fork
    return {
        "schema": 1,
        **({"fork": {**fork.source.model_dump(), "complete": fork.complete}} if fork else {}),
        "cuda": stack.cuda,
        "triton": stack.flavour,
        "torch": stack.torch,
        "platform": stack.platform,
        "python": stack.python,
        "driver_floor": stack.line.driver_floor,
        "ptxas": stack.line.ptxas,
        "toolkit": [_package_dict(p) for p in stack.packages["cuda"]],
        "archs": list(stack.archs),
        "base": {
            "image": stack.base,
            "suite": rootfs.suite if rootfs else "",
            **({"cpython": stack.cpython.file.model_dump()} if stack.cpython else {}),
            "tar": rootfs.tar.sha256 if rootfs else "",
            "packages": {d.package: d.version for d in rootfs.packages} if rootfs else {},
        },
        "layers": {
            name: [_package_dict(p) for p in packages]
            for name, packages in sorted(stack.packages.items())
        },
    }


def slice_digest(slice_: Mapping[str, object]) -> str:
    """Return the sha256 of a slice of the lock, as the label `io.tdstack.lock-slice` has it."""
    return _digest(slice_)


def short_name(stack: Stack) -> str:
    """Return the rolling tag: `cu124`, and what differs from the default after it."""
    parts = [line_tag(stack.cuda)]
    parts += [stack.flavour] if stack.flavour != "distributed" else []
    parts += [f"torch-{stack.torch}"] if stack.torch != "cuda" else []
    parts += [stack.platform.split("/")[1]] if stack.platform != "linux/amd64" else []
    parts += stack.archs if stack.restricted else ()
    return "-".join(parts)


def _tags(stack: Stack, key: str) -> tuple[str, ...]:
    rolling = short_name(stack)
    line, _, rest = rolling.partition("-")
    python = f"py{stack.python.replace('.', '')}"
    full = "-".join(part for part in (line, python, rest, key[:12]) if part)
    return f"{REPOSITORY}:{full}", f"{REPOSITORY}:{rolling}"


def _labels(
    stack: Stack,
    name: LayerName,
    key: str,
    parent: str | None,
    recipe: Recipe,
    lock_slice: str,
) -> dict[str, str]:
    labels = {
        "org.opencontainers.image.title": f"tdstack {name}",
        "org.opencontainers.image.description": recipe.summary,
        "org.opencontainers.image.licenses": "Apache-2.0",
        f"{LABEL}.layer": name,
        f"{LABEL}.key": key,
    }
    if parent:
        labels[f"{LABEL}.parent"] = parent
    if name in ("cuda", "kernels"):
        labels[f"{LABEL}.cuda"] = stack.cuda
        labels[f"{LABEL}.driver"] = f">={stack.line.driver_floor}"
    if name == "kernels":
        labels[f"{LABEL}.triton"] = stack.flavour
        labels[f"{LABEL}.torch"] = stack.torch
        labels[f"{LABEL}.archs"] = ",".join(stack.archs)
        labels[f"{LABEL}.lock-slice"] = lock_slice
        if stack.line.experimental:
            labels[f"{LABEL}.experimental"] = stack.line.experimental
    return labels


def _base_question(stack: Stack) -> object:
    if stack.rootfs is None:
        return stack.base
    return {"tar": stack.rootfs.tar.sha256, "hooks": HOOKS, "left_out": LEFT_OUT}


def _absolute(env: Mapping[str, str]) -> dict[str, str]:
    return {k: f"/{v}" if v.startswith(f"{PREFIX}/") else v for k, v in env.items()}


def _package_dict(package: Package) -> dict[str, str]:
    return {
        "name": package.name,
        "version": package.version,
        "file": package.file.name if package.file else "",
        "sha256": package.file.sha256 if package.file else "",
        "origin": package.origin,
    }


def _layer_dict(layer: Layer) -> dict[str, object]:
    return {
        "name": layer.name,
        "key": layer.key,
        "parent": layer.parent,
        "ref": layer.ref,
        "recipe": f"images/{layer.name}/recipe.toml",
        "budget_mb": layer.recipe.budget_mb,
        "env": layer.env,
        "labels": layer.labels,
        "tags": list(layer.tags),
        "packages": [
            {**_package_dict(p), "size": p.file.size if p.file else None} for p in layer.packages
        ],
    }


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
