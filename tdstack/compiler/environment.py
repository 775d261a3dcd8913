"""The compiler's environment: one Triton and one ptxas, by hash, made once and kept in the store.

Nothing else is in it, so that no other Triton of this host can be met.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.unpack import unpack_wheel
from tdstack.compiler.host import Host
from tdstack.lock.model import LayerName, LockedFile
from tdstack.recipe import Recipe, load_recipe
from tdstack.stack import Stack
from tdstack.wheelhouse.store import Store

# Raise it when an environment of the same files is laid out in another way.
FORMAT = 1
LAYERS: tuple[LayerName, ...] = ("triton", "cuda")


@dataclass(frozen=True)
class Compiler:
    """An environment in the store, made or not yet.

    `files` are the wheels that it is made of, `forked` says that Triton is Triton-distributed.
    """

    folder: Path
    python: Path
    ptxas: Path
    files: tuple[LockedFile, ...]
    forked: bool

    @property
    def made(self) -> bool:
        """Return whether it is there; its Python may have been uninstalled since."""
        return self.python.exists()


def compiler_of(stack: Stack, host: Host, root: Path, store: Store) -> Compiler:
    """Return the compiler of a stack: its folder is named by all that decides its contents."""
    files = tuple(p.file for layer in LAYERS for p in stack.packages.get(layer, ()) if p.file)
    question = {
        "format": FORMAT,
        "interpreter": [str(host.interpreter), host.python],
        "files": [[f.name, f.sha256] for f in files],
        "left_out": [
            rule.model_dump(exclude={"reason"}) for r in _recipes(root) for rule in r.drop
        ],
    }
    text = json.dumps(question, sort_keys=True)
    folder = store.root / "compilers" / hashlib.sha256(text.encode()).hexdigest()[:32]
    return Compiler(
        folder=folder,
        python=folder / "bin" / "python",
        ptxas=folder / _site(host) / stack.line.ptxas,
        files=files,
        forked=stack.flavour == "distributed",
    )


def make_environment(compiler: Compiler, host: Host, root: Path, store: Store) -> None:
    """Make the environment unless it is there; its files are in the store by now.

    Raises: IntegrityError for a file whose bytes are not the lock's.
    """
    with store.locked(f"compiler-{compiler.folder.name}"):
        if compiler.made:
            return
        compiler.folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="compiler-", dir=store.work()) as name:
            _fill(Path(name, "env"), compiler.files, host, _recipes(root), store)
            if compiler.folder.exists():  # with a link to a Python that is gone
                compiler.folder.rename(Path(name, "old"))
            Path(name, "env").rename(compiler.folder)


def _fill(
    folder: Path, files: Iterable[LockedFile], host: Host, recipes: list[Recipe], store: Store
) -> None:
    def drops(path: str) -> bool:
        return any(recipe.drops(path) for recipe in recipes)

    for file in files:
        unpack_wheel(store.verify(file), file.name, folder, _site(host), drops)
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").symlink_to(host.interpreter)
    config = f"home = {host.interpreter.parent}\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(f"{config}version = {host.python}\n")


def _recipes(root: Path) -> list[Recipe]:
    # What an image leaves out of these packages, its own compiler does without.
    return [load_recipe(root, layer) for layer in LAYERS]


def _site(host: Host) -> str:
    return f"lib/python{host.python}/site-packages"
