"""Which kernels the dispatch table of kernels/ can choose: what a build has to compile."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module, util
from pathlib import Path

from tdstack.errors import UsageError

# Not the package's own name: a test, or another checkout, may have imported that one.
ALIAS = "tdstack_kernels_of_the_checkout"


def variant_names(root: Path, archs: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the variants that can be chosen on each architecture.

    `root` is the checkout. Only the dispatch table and its reader are loaded, neither Triton nor
    torch.
    Raises: UsageError for an architecture that the kernels do not know, and for sources or a
    dispatch table that cannot be read.
    """
    folder = root / "kernels" / "src" / "gemm_allreduce"
    spec = util.spec_from_file_location(ALIAS, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a plan writes nothing
    try:
        sys.modules[ALIAS] = package = util.module_from_spec(spec)
        spec.loader.exec_module(package)
        reachable = import_module(f"{ALIAS}.dispatch").reachable_variants
        return {arch: [variant.name for variant in reachable(arch)] for arch in archs}
    except (ValueError, TypeError, LookupError, SyntaxError, ImportError, OSError) as error:
        raise UsageError(
            "the kernels do not say what can be compiled for these architectures",
            where="kernels/src/gemm_allreduce: dispatch.toml, dispatch.py",
            got=f"{type(error).__name__}: {error}".replace(ALIAS, "gemm_allreduce"),
            expected=f"what serves {', '.join(archs)}",
        ) from error
    finally:
        sys.dont_write_bytecode = before
        for name in [n for n in sys.modules if n.partition(".")[0] == ALIAS]:
            del sys.modules[name]
