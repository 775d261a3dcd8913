"""A plan's layers as entries of a version: what the image has below /opt/tdstack.

The entries are those that a build makes tars of. What lies elsewhere in the image (its cache
folder, its home) is a container's, and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdstack.assemble.entries import Entry, from_bytes
from tdstack.assemble.layer import recipe_entries, venv_entries
from tdstack.assemble.shebang import shebang
from tdstack.assemble.wheel import WheelEntries
from tdstack.lock.model import LockedFile
from tdstack.plan import PREFIX, Layer, Plan, slice_of
from tdstack.verify.triton.constraints import constraints_path, constraints_text, pip_conf_text
from tdstack.wheelhouse.store import Store


@dataclass(frozen=True)
class Contents:
    """What to read from: `version` is the folder that the version will have when it is whole."""

    plan: Plan
    store: Store
    root: Path
    version: Path
    interpreter: Path

    def early(self) -> list[Entry]:
        """Return the entries of all layers below the kernels.

        Raises: IntegrityError for a wheel that is not the lock's, or is not whole.
        """
        plan = self.plan
        # Of a Python of its own the version links to that, wherever it then lies.
        own = f"../python/bin/python{plan.stack.python}"
        python = own if plan.stack.cpython else str(self.interpreter)
        entries = venv_entries(plan.stack.python, python, plan.site)
        for layer in plan.layers[:-1]:
            entries += self._of(layer, [p.file for p in layer.packages if p.file])
        return self._placed(entries)

    def kernels(self, own: Sequence[LockedFile]) -> list[Entry]:
        """Return the entries of the kernels' layer; `own` are the wheels of package and cubins.

        Raises: as early.
        """
        entries = self._of(self.plan.final, own)
        text = json.dumps(slice_of(self.plan.stack), indent=1, sort_keys=True) + "\n"
        entries.append(from_bytes(f"{PREFIX}/manifest.json", text.encode()))
        return self._placed(entries)

    def _of(self, layer: Layer, files: Iterable[LockedFile]) -> list[Entry]:
        texts = self._texts() if layer.texts else {}
        entries = recipe_entries(replace(layer, texts=texts), self.root)
        for file in files:
            # The store may have rotted since the download.
            wheel = self.store.verify(file)
            python = str(self.version / "bin" / "python")
            named = WheelEntries(wheel, file.name, PREFIX, self.plan.site, python)
            entries += named.entries(layer.recipe.drops)
        return entries

    def _texts(self) -> dict[str, str]:
        """Return what holds Triton-distributed, naming this version instead of the image."""
        version = next(p.version for p in self.plan.stack.packages["triton"] if p.name == "triton")
        held = constraints_path(self.version)
        inside = f"{PREFIX}/{held.relative_to(self.version)}"
        return {
            inside: constraints_text(version),
            f"{PREFIX}/pip.conf": pip_conf_text("", held),
        }

    def _placed(self, entries: Iterable[Entry]) -> list[Entry]:
        inside = (e for e in entries if e.path.startswith(f"{PREFIX}/"))
        return [self._own_script(replace(e, path=e.path[len(PREFIX) + 1 :])) for e in inside]

    def _own_script(self, entry: Entry) -> Entry:
        """Let a script of the checkout run with this version's Python instead of the image's."""
        source = entry.content.file
        if source is None or not entry.path.startswith("bin/"):
            return entry
        first, _, rest = source.read_bytes().partition(b"\n")
        image = f"#!/{PREFIX}/bin/python".encode()
        if not first.startswith(image):
            return entry
        options = first.removeprefix(image).decode().strip()
        head = shebang(str(self.version / "bin" / "python"), options)
        return from_bytes(entry.path, head + rest, entry.mode)
