"""Which modules a wheel's own code imports and lacks: small source trees, one question each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.fork.imports import ROOTS, Missing, missing_modules

Tree = Mapping[str, str]
NOTHING: tuple[str, ...] = ()


def lacking(
    sources: Tree, others: tuple[str, ...] = (), roots: tuple[str, ...] = ("a",)
) -> tuple[str, ...]:
    """Return the missing modules; those that a root's import needs are marked with `!`."""
    found = missing_modules(sources, others, roots)
    return tuple(f"{m.module}{'!' if m.needed else ''}" for m in found)


def a(text: str, **more: str) -> dict[str, str]:
    """A package `a` with this in its __init__.py, and modules below it."""
    return {"a/__init__.py": text, **{f"a/{name}.py": body for name, body in more.items()}}


TABLE: list[tuple[str, Tree, tuple[str, ...]]] = [
    ("absolute", a("import a.x"), ("a.x!",)),
    ("absolute, there", a("import a.x", x=""), NOTHING),
    ("absolute under another name", a("import a.x as y"), ("a.x!",)),
    ("from absolute", a("from a.x import y"), ("a.x!",)),
    ("relative", a("from .x import y"), ("a.x!",)),
    ("relative, there", a("from .x import y", x=""), NOTHING),
    ("relative from a module", a("from . import m", m="from .x import y"), ("a.x!",)),
    ("two levels up", a("from a.p import m", **{"p/__init__": "", "p/m": "from ..x import y"}),
     ("a.x!",)),
    ("two levels up, there",
     a("from a.p import m", **{"p/__init__": "", "p/m": "from ..x import y", "x": ""}), NOTHING),
    ("above the top", a("from ... import x\nfrom ....a.x import y"), NOTHING),
    ("deep, its package missing", a("import a.p.q.r"), ("a.p.q.r!",)),
    ("from a missing package", a("from a.p import q"), ("a.p!",)),
    ("own package, unbound", a("from . import x"), ("a.x!",)),
    ("own package by its full name", a("from a import x"), ("a.x!",)),
    ("own package, unbound, renamed", a("from . import x as y"), ("a.x!",)),
    ("bound by a function", a("from . import m\ndef x(): pass", m="from . import x"), NOTHING),
    ("bound by a class", a("from . import m\nclass x: pass", m="from a import x"), NOTHING),
    ("bound by assignment", a("from . import m\nx = 1", m="from a import x"), NOTHING),
    ("bound by unpacking", a("from . import m\nx, *z = f", m="from a import x, z"), NOTHING),
    ("bound by annotated assignment", a("from . import m\nx: int = 1", m="from a import x"),
     NOTHING),
    ("bound by a loop", a("from . import m\nfor x in f: pass", m="from a import x"), NOTHING),
    ("bound by with", a("from . import m\nwith f as x: pass", m="from a import x"), NOTHING),
    ("bound by walrus", a("from . import m\n(x := 1)", m="from a import x"), NOTHING),
    ("bound by match", a("from . import m\nmatch f:\n case [x]: pass", m="from a import x"),
     NOTHING),
    ("bound by an import", a("from . import m\nimport os as x", m="from a import x"), NOTHING),
    ("bound by a renamed submodule",
     a("from . import m\nfrom . import m as x", m="from a import x"),
     NOTHING),
    ("bound by the package above",
     a("x = 1\nfrom a import p", **{"p/__init__": "from .. import x\nfrom . import m",
                                    "p/m": "from a.p import x"}), NOTHING),
    ("bound by try", a("try:\n from . import x\nexcept ImportError:\n x = None\nfrom . import m",
                       m="from a import x"), NOTHING),
    ("bound by global", a("from . import m\ndef f():\n global x\n x = 1", m="from a import x"),
     NOTHING),
    ("a local of a function binds nothing", a("def f():\n x = 1\nfrom . import m",
                                              m="from a import x"), ("a.x!",)),
    ("a class's own name binds nothing", a("class C:\n x = 1\nfrom . import m",
                                           m="from a import x"), ("a.x!",)),
    ("names of a module, not of a package", a("from .m import x", m=""), NOTHING),
    ("dunder names of a package", a("from . import m", m="from a import __name__, __path__"),
     NOTHING),
    ("__getattr__", a("def __getattr__(n): pass\nfrom . import m", m="from a import x"), NOTHING),
    ("__getattr__ by assignment", a("__getattr__, d = f()\nfrom . import m", m="from a import x"),
     NOTHING),
    ("__getattr__ by import", a("from os import __getattr__\nfrom . import m",
                                m="from a import x"), NOTHING),
    ("globals()", a("globals()['x'] = 1\nfrom . import m", m="from a import x"), NOTHING),
    ("star", a("from os import *\nfrom . import m", m="from a import x"), NOTHING),
    ("star of a missing module", a("from .x import *"), ("a.x!",)),
    ("star of the package itself", a("from . import m", m="from a import *"), NOTHING),
    ("try", a("try:\n import a.x\nexcept ImportError: pass"), NOTHING),
    ("except", a("try: pass\nexcept E:\n import a.x"), NOTHING),
    ("suppress", a("with suppress(ImportError):\n import a.x"), NOTHING),
    ("contextlib.suppress", a("with contextlib.suppress(E):\n import a.x"), NOTHING),
    ("with", a("with f():\n import a.x"), ("a.x!",)),
    ("function", a("def f():\n import a.x"), NOTHING),
    ("method", a("class C:\n def f(self):\n  import a.x"), NOTHING),
    ("class body", a("class C:\n import a.x"), ("a.x!",)),
    ("if", a("if f:\n import a.x"), ("a.x",)),
    ("elif", a("if f: pass\nelif g:\n import a.x"), ("a.x",)),
    ("else", a("if f: pass\nelse:\n import a.x"), ("a.x",)),
    ("if and for certain", a("if f:\n import a.x\nimport a.x"), ("a.x!",)),
    ("for certain and if", a("import a.x\nif f:\n import a.x"), ("a.x!",)),
    ("if around a class", a("if f:\n class C:\n  import a.x"), ("a.x",)),
    ("loop", a("for f in g:\n import a.x"), ("a.x",)),
    ("TYPE_CHECKING", a("if TYPE_CHECKING:\n import a.x"), NOTHING),
    ("typing.TYPE_CHECKING", a("if typing.TYPE_CHECKING:\n import a.x"), NOTHING),
    ("else of TYPE_CHECKING", a("if TYPE_CHECKING: pass\nelse:\n import a.x"), ("a.x!",)),
    ("TYPE_CHECKING and more", a("if TYPE_CHECKING and f:\n import a.x"), NOTHING),
    ("not on the way from the root", a("", m="import a.x"), ("a.x",)),
    ("on the way by two steps", a("from . import m", m="from . import n", n="import a.x"),
     ("a.x!",)),
    ("on the way only by if", a("if f:\n from . import m", m="import a.x"), ("a.x",)),
    ("on the way only by try", a("try:\n from . import m\nexcept E: pass", m="import a.x"),
     ("a.x",)),
    ("on the way by a parent", a("import a.p.q", **{"p/__init__": "import a.x", "p/q": ""}),
     ("a.x!",)),
    ("a name that the package binds is no submodule",
     a("from a.p import m", **{"p/__init__": "def m(): pass", "p/m": "import a.x"}), ("a.x",)),
    ("a name that a star may bind may be a submodule",
     a("from a.p import m", **{"p/__init__": "from os import *", "p/m": "import a.x"}),
     ("a.x!",)),
    ("cycle", a("from . import m", m="from . import n", n="from . import m\nimport a.x"),
     ("a.x!",)),
    ("cycle of one", a("import a"), NOTHING),
    ("another distribution", a("import numpy.x, torch\nfrom cuda import core"), NOTHING),
    ("syntax error imports nothing", a("import a.x\nthis is no Python"), NOTHING),
    ("syntax error may bind anything", a("def", m="from a import x"), NOTHING),
    ("syntax error elsewhere", a("import a.x", m="(("), ("a.x!",)),
    ("Python 2", a("print 'x'\nimport a.x"), NOTHING),
    ("NUL", a("import a.x\0"), NOTHING),
    ("byte order mark", a("\ufeffimport a.x"), ("a.x!",)),
    ("nested too deeply to parse", a("-" * 100_000 + "1", m="import a.x"), ("a.x",)),
    ("many elif", a("if f: pass\n" + "elif f: pass\n" * 900), NOTHING),
    ("namespace package", {"a/p/m.py": "", "a/n.py": "from a.p import m"}, NOTHING),
    ("namespace package lacks it", {"a/p/m.py": "", "a/__init__.py": "from a.p import x"},
     ("a.p.x!",)),
    ("namespace package on the way", {"a/p/m.py": "import a.x", "a/__init__.py":
                                      "from a.p import m"}, ("a.x!",)),
    ("no root", {"b/__init__.py": ""}, ("a!",)),
    ("nothing at all", {}, ("a!",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_is_missing(sources: Tree, expected: tuple[str, ...]) -> None:
    assert lacking(sources) == expected


@pytest.mark.parametrize(
    "text", ["import a.c", "import a.c.x", "from a.c import x", "from a.c.x import y",
             "from . import c", "from .c import x"],
)  # fmt: skip
def test_a_compiled_module_may_hold_modules_of_its_own(text: str) -> None:
    assert lacking(a(text), ("a.c",)) == ()
    assert lacking(a(text)) != (), "without the compiled module it is missing"


def test_beside_a_compiled_module_a_missing_one_is_missing() -> None:
    assert lacking(a("from a._C import lib, other"), ("a._C.lib",)) == ("a._C.other!",)


def test_each_importer_is_named_and_what_is_needed_comes_first() -> None:
    sources = a("from . import m", m="import a.z", n="import a.b, a.z")
    assert missing_modules(sources, (), ["a"]) == (
        Missing("a.z", "a.m", True),
        Missing("a.b", "a.n", False),
        Missing("a.z", "a.n", False),
    )


def test_the_roots_are_what_users_of_the_stack_import() -> None:
    assert lacking({"triton/__init__.py": ""}, roots=ROOTS) == (
        "triton_dist.language!",
        "triton_dist.layers.nvidia!",
    )


def _stock() -> Path:
    try:
        found = distribution("triton")
    except PackageNotFoundError:
        pytest.skip("no Triton is installed")
    if found.version != "3.4.0":
        pytest.skip(f"Triton {found.version} is installed")
    return Path(str(found.locate_file("triton")))


def test_stock_triton_needs_nothing_that_it_lacks() -> None:
    package = _stock()
    sources = {
        str(path.relative_to(package.parent)): path.read_text() for path in package.rglob("*.py")
    }
    compiled = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.so")
    ]
    assert len(sources) > 50
    assert [m for m in missing_modules(sources, compiled, ["triton"]) if m.needed] == []
    # The same tree without one file that its __init__.py imports.
    del sources["triton/runtime/__init__.py"]
    removed = {n: t for n, t in sources.items() if not n.startswith("triton/runtime/")}
    needed = {m.module for m in missing_modules(removed, compiled, ["triton"]) if m.needed}
    assert "triton.runtime" in needed


def test_warnings_about_the_authors_strings_are_not_ours(
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert lacking(a(r"x = '\d'" + "\nimport a.x")) == ("a.x!",)
    assert [str(w.message) for w in recwarn] == []


LINES = st.sampled_from(
    ["from . import x", "from .x import *", "import a.x", "from ..... import y", "try:", "if f:",
     " import a.y", "def f():", "class C:", "else:", "x = 1", "with suppress(E):", "match f:",
     " case [x]: import a.z", "global x", "from a import (", ")", "\ufeff", "\\", "'''"]
)  # fmt: skip
NAMES = st.sampled_from(["a/__init__.py", "a/x.py", "a/p/__init__.py", "b.py", "a.py", ".py", "/"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, st.lists(LINES).map("\n".join) | st.text(), max_size=4))
def test_no_text_is_too_odd(sources: dict[str, str]) -> None:
    for one in missing_modules(sources, ["a.c"], ["a"]):
        assert one.module == "a" or one.module not in {
            n.removesuffix(".py").replace("/", ".") for n in sources
        }


@pytest.mark.parametrize("depth", [50, 90, 250, 900, sys.getrecursionlimit()])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: "if f: pass\n" + "elif f: import a.x\n" * n,
        lambda n: "(" * n + ")" * n,
        lambda n: "if f" + ".g" * n + ": import a.x",
        lambda n: "x = " + "-" * n + "1",
        lambda n: "".join(" " * i + "if f:\n" for i in range(n)) + " " * n + "import a.x",
    ],
    ids=["elif", "parentheses", "attributes", "signs", "indents"],
)
def test_depth_ends_in_no_error(make: object, depth: int) -> None:
    assert callable(make)
    assert set(lacking(a(make(depth)))) <= {"a.x"}
