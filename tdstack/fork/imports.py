"""Which modules a wheel's own Python code imports and the wheel lacks. Imports nothing.

Triton-distributed's setup.py lists its packages by hand, and wheels have come out without some
that their own code imports at once (`triton_dist.language` imports `.tma`, which main at 1512a81
does not list).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

# What a user of the stack imports; each brings in the packages above it.
ROOTS = ("triton", "triton_dist.language", "triton_dist.layers.nvidia")


@dataclass(frozen=True)
class Missing:
    """A module that is imported and not there. `needed` says that a root's import fails."""

    module: str
    importer: str
    needed: bool


@dataclass(frozen=True)
class _Import:
    module: str
    names: tuple[str, ...] = ()
    certain: bool = True


class _Module:
    """One source file. What does not parse imports nothing and may bind anything."""

    def __init__(self, path: str, text: str) -> None:
        parts = path.removesuffix(".py").split("/")
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        try:
            self._tree: ast.Module | None = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            self._tree = None

    @cached_property
    def imports(self) -> tuple[_Import, ...]:
        """The imports that run with the module itself."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        return tuple(_of_body(self._tree.body, package, certain=True)) if self._tree else ()

    @cached_property
    def bound(self) -> frozenset[str] | None:
        """The names that the module binds, or None when that cannot be known."""
        return _bound(self._tree) if self._tree else None


def missing_modules(
    sources: Mapping[str, str], others: Iterable[str] = (), roots: Iterable[str] = ROOTS
) -> tuple[Missing, ...]:
    """Return what the sources import of their own top-level packages and do not have. Pure.

    `sources` maps paths (`a/b.py`, `a/__init__.py`) to Python text; `others` are compiled modules
    (`a.c`). Imports in functions, in `try` and for type checkers are left out: their authors
    count on them to fail. Those under any other `if` are found, but need not happen.
    """
    modules = {m.name: m for m in (_Module(path, text) for path, text in sources.items())}
    compiled = set(others)
    present = {*modules, *compiled}
    present |= {p for name in present for p in _prefixes(name)}
    tops = {name.split(".")[0] for name in modules}
    reached = _reached(modules, roots)
    found = {(root, ""): Missing(root, "", True) for root in roots if root not in present}
    for name, module in sorted(modules.items()):
        for one in module.imports:
            for target in _targets(one, modules):
                if target in present or target.split(".")[0] not in tops:
                    continue
                if any(p in compiled for p in _prefixes(target)):
                    continue  # compiled code may hold modules of its own
                needed = one.certain and name in reached
                earlier = found.get((target, name))
                if earlier is None or needed > earlier.needed:
                    found[target, name] = Missing(target, name, needed)
    return tuple(sorted(found.values(), key=lambda m: (not m.needed, m.module, m.importer)))


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _reached(modules: Mapping[str, _Module], roots: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    waiting = list(roots)
    while waiting:
        for name in _prefixes(waiting.pop()):
            if name in reached or name not in modules:
                continue
            reached.add(name)
            for one in modules[name].imports:
                if one.certain:
                    waiting += [one.module, *(f"{one.module}.{n}" for n in one.names)]
    return reached


def _targets(one: _Import, modules: Mapping[str, _Module]) -> Iterator[str]:
    yield one.module
    package = modules.get(one.module)
    # `from package import name` reaches a submodule only if the package binds no such name.
    if package and package.is_package and package.bound is not None:
        yield from (f"{one.module}.{n}" for n in one.names if n not in package.bound)


def _bound(tree: ast.Module) -> frozenset[str] | None:
    names = {"__name__", "__file__", "__path__", "__doc__", "__spec__", "__package__"}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name="__getattr__"):
                return None
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import():
                names |= {(a.asname or a.name).split(".")[0] for a in node.names}
            case ast.ImportFrom():
                if any(a.name == "*" for a in node.names):
                    return None
                # A name that an import binds to itself may be the very submodule that is missing.
                if not (node.level and not node.module):
                    names |= {a.asname or a.name for a in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Call(func=ast.Name(id="globals" | "setattr")):
                return None
            case _:
                pass
    return frozenset(names)


def _of_body(body: list[ast.stmt], package: str, *, certain: bool) -> Iterator[_Import]:
    for node in body:
        match node:
            case ast.Import():
                yield from (_Import(a.name, (), certain) for a in node.names)
            case ast.ImportFrom():
                if module := _absolute(node, package):
                    names = tuple(a.name for a in node.names if a.name != "*")
                    yield _Import(module, names, certain)
            case ast.If() if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from _of_body([*node.body, *node.orelse], package, certain=False)
            case ast.With() | ast.ClassDef():
                yield from _of_body(node.body, package, certain=certain)
            case _:
                pass


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = parts[: len(parts) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])
