"""Which modules a wheel's own Python code imports and the wheel lacks. Imports nothing.

Triton-distributed's setup.py lists its packages by hand, and wheels have come out without some
that their own code imports at once (`triton_dist.language` imports `.tma`, which main at 1512a81
does not list).
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

# What a user of the stack imports; each brings in the packages above it.
ROOTS = ("triton", "triton_dist.language", "triton_dist.layers.nvidia")

_CHECKING = "TYPE_CHECKING"


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
        self._tree = _parsed(text)

    @cached_property
    def imports(self) -> tuple[_Import, ...]:
        """The imports that run with the module itself."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        try:
            return tuple(_of_body(self._tree.body, package, certain=True)) if self._tree else ()
        except RecursionError:  # a chain of many hundred elif
            return ()

    @cached_property
    def bound(self) -> frozenset[str] | None:
        """The names that the module binds, or None when that cannot be known."""
        return _bound(self._tree, self.name) if self._tree else None


def missing_modules(
    sources: Mapping[str, str], others: Iterable[str] = (), roots: Iterable[str] = ROOTS
) -> tuple[Missing, ...]:
    """Return what the sources import of their own top-level packages and do not have. Pure.

    `sources` maps paths (`a/b.py`, `a/__init__.py`) to Python text; `others` are compiled modules
    (`a.c`). Imports in functions, in `try`, under `suppress` and for type checkers are left out:
    their authors count on them to fail. Those under any other `if` are found, but need not happen.
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
            for target in _targets(one, modules, unclear=False):
                if target in present or target.split(".")[0] not in tops:
                    continue
                if target != one.module and one.module not in present:
                    continue  # its package is missing, and said to be
                if any(p in compiled for p in _prefixes(target)):
                    continue  # compiled code may hold modules of its own
                needed = one.certain and name in reached
                earlier = found.get((target, name))
                if earlier is None or needed > earlier.needed:
                    found[target, name] = Missing(target, name, needed)
    return tuple(sorted(found.values(), key=lambda m: (not m.needed, m.module, m.importer)))


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            # Of strings with odd escapes; they are the author's affair.
            warnings.simplefilter("ignore")
            return ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


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
                    waiting += _targets(one, modules, unclear=True)
    return reached


def _targets(one: _Import, modules: Mapping[str, _Module], *, unclear: bool) -> Iterator[str]:
    """Yield the modules that an import asks for; with `unclear` also those that it may mean.

    `from package import name` reaches a submodule only if the package binds no such name; a
    package without a file of its own binds none.
    """
    yield one.module
    package = modules.get(one.module)
    if package and not package.is_package:
        return
    bound = package.bound if package else frozenset[str]()
    if bound is not None or unclear:
        yield from (f"{one.module}.{n}" for n in one.names if n not in (bound or ()))


def _bound(tree: ast.Module, name: str) -> frozenset[str] | None:
    names = {"__name__", "__file__", "__path__", "__doc__", "__spec__", "__package__"}
    for node in ast.walk(tree):
        match node:
            case ast.Global():
                names.update(node.names)
            case ast.Call(func=ast.Name(id="exec" | "globals" | "locals" | "setattr" | "vars")):
                return None
            case _:
                pass
    for node in _of_the_module(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import():
                names |= {(a.asname or a.name).split(".")[0] for a in node.names}
            case ast.ImportFrom():
                if any(a.name == "*" for a in node.names):
                    return None
                # A name that a package imports from itself may be the submodule that is missing.
                own = _absolute(node, name) == name
                names |= {a.asname or ("" if own else a.name) for a in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.MatchAs(name=str(captured)) | ast.MatchStar(name=str(captured)):
                names.add(captured)
            case _:
                pass
    return None if "__getattr__" in names else frozenset(names)


def _of_the_module(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes whose names are the module's, not those inside functions and classes."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _of_body(body: list[ast.stmt], package: str, *, certain: bool) -> Iterator[_Import]:
    for node in body:
        match node:
            case ast.Import():
                yield from (_Import(a.name, (), certain) for a in node.names)
            case ast.ImportFrom():
                if module := _absolute(node, package):
                    names = tuple(a.name for a in node.names if a.name != "*")
                    yield _Import(module, names, certain)
            case ast.If(test=ast.Name(id=name) | ast.Attribute(attr=name)) if name == _CHECKING:
                yield from _of_body(node.orelse, package, certain=certain)
            case ast.If() if _CHECKING not in ast.dump(node.test):
                yield from _of_body([*node.body, *node.orelse], package, certain=False)
            case ast.For() | ast.While():
                yield from _of_body(node.body, package, certain=False)
            case ast.With() if any("suppress" in ast.dump(i) for i in node.items):
                pass  # as `try`
            case ast.With() | ast.ClassDef():
                yield from _of_body(node.body, package, certain=certain)
            case _:
                pass


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = parts[: max(0, len(parts) - (node.level - 1))]
    if not above:
        return ""  # above the top: it fails, whatever the wheel holds
    return ".".join([*above, *([node.module] if node.module else [])])
