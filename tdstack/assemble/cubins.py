"""The wheel of a bundle: one CUDA line's cubins as a folder of a namespace package.

No wheel owns `gemm_allreduce_cubins/__init__.py` (PEP 420), so that those of several lines can
be installed side by side, and one of them uninstalled.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tdstack.assemble.backend import build_wheel
from tdstack.assemble.bundle import Bundle, read_bundle
from tdstack.errors import IntegrityError
from tdstack.lock.model import LockedFile
from tdstack.tags import line_tag
from tdstack.wheelhouse.store import Store

NAMESPACE = "gemm_allreduce_cubins"
PROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "Cubins of gemm-allreduce, compiled with CUDA {cuda} for {archs}"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["gemm-allreduce=={version}", "cuda-core>=1.0,<2"]
classifiers = ["Environment :: GPU :: NVIDIA CUDA"]

[tool.hatch.build]
ignore-vcs = true  # the folder may lie in a checkout that ignores it

[tool.hatch.build.targets.wheel]
packages = ["{namespace}"]
core-metadata-version = "2.4"  # the oldest with License-Expression: older installers read it
"""


def distribution_of(cuda: str) -> str:
    """Return the name of the distribution that brings the cubins of a CUDA line. Pure."""
    return f"gemm-allreduce-cubins-{line_tag(cuda)}"


def cubins_wheel(bundle: Path, cuda: str, root: Path, scratch: Path, store: Store) -> LockedFile:
    """Build the wheel of the bundle in folder `bundle` for a CUDA line and put it into the store.

    Equal bundles give equal bytes. `root` is the checkout; `scratch` is a folder for what is in
    the making.
    Raises: HostError without a bundle, or when the build backend fails; IntegrityError for a
    bundle that is not whole, or that was compiled for another line.
    """
    read = read_bundle(bundle)
    if read.cuda != cuda:
        raise IntegrityError(
            "the cubins were compiled for another CUDA line",
            where=str(bundle),
            expected=cuda,
            got=read.cuda or "none",
            remedy=f"compile them with --cuda {cuda}",
        )
    with tempfile.TemporaryDirectory(prefix="cubins-", dir=scratch) as name:
        project = Path(name, "project")
        place = project / NAMESPACE / line_tag(cuda)
        # Only what the manifest names: an earlier run may have left other files.
        for file in read.files:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / file, place / file)
        shutil.copyfile(root / "LICENSE", project / "LICENSE")
        (project / "pyproject.toml").write_text(_project(read))
        return build_wheel(project, Path(name, "dist"), store, origin=distribution_of(cuda))


def _project(bundle: Bundle) -> str:
    archs = sorted({c.arch for c in bundle.cubins}, key=lambda a: int(a.removeprefix("sm_")))
    return PROJECT.format(
        name=distribution_of(bundle.cuda),
        version=bundle.version,
        cuda=bundle.cuda,
        archs=", ".join(archs),
        namespace=NAMESPACE,
    )
