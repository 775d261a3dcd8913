"""Kernels that were compiled ahead of time: they serve alone, and only if they are whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gemm_allreduce import CubinError, CubinIntegrityError, MissingCubinError
from gemm_allreduce.bundle import MANIFEST, VARIABLE, Bundle, read_bundle
from gemm_allreduce.dispatch import Choice
from gemm_allreduce.kernels import find_bundle
from gemm_allreduce.variants import Tile, Variant
from smoke_tests.checks.registry import GPU, check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, expected


@check(*GPU, needs_cubins=True)
def a_graph_can_be_captured_right_after_warmup(ranks: Ranks) -> str:
    """No call was made before: warmup has loaded what the layers need, and no compiler."""
    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 140)
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        inputs = [source.integers(workspace.dtype, w, m, scale.depths[0]) for m in (1, 64, 512)]
        done = workspace.warmup([(scale.features, scale.depths[0])])
        ranks.synchronize()
        ranks.gather(None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = [ranks.call(workspace, x, weight) for x in inputs]
        graph.replay()
        ranks.synchronize()
        for x, y in zip(inputs, results, strict=True):
            want = expected(x, weight, workspace.dtype)
            ranks.require_equal(y, want, f"M {x.shape[1]}")
    # Not Triton itself: libraries that other checks use import it where it is installed.
    assert "gemm_allreduce.device" not in sys.modules, "a kernel's source was imported"
    return str(done)


@check(*GPU, needs_cubins=True)
def what_is_no_whole_cubin_is_refused(ranks: Ranks) -> str:
    """A changed byte, a missing file, another version's bundle, a kernel that was not compiled."""
    damages = {
        _change_all: (CubinIntegrityError, "was changed: sha256"),
        _remove_all: (CubinIntegrityError, "cannot be read"),
        _make_older: (CubinError, "was compiled from gemm_allreduce 0.0.1"),
    }
    for damage, (kind, words) in damages.items():
        with _copy_of_bundle(ranks, damage):
            _require(kind, words, lambda: _warm_up_and_close(ranks))
        ranks.gather(None)
    tile = Tile(32, 64, 64, 2, 4)
    odd = Choice(Variant("one_shot", "fp16", "fp16", ranks.world_size, tile))
    with ranks.workspace("fp16", dispatch=lambda _: odd) as workspace:
        lacking = f"has no {odd.variant.name}"
        _require(MissingCubinError, lacking, lambda: workspace.warmup([(64, 64)], tokens=[1]))
    return f"{len(damages) + 1} refusals"


def _warm_up_and_close(ranks: Ranks) -> None:
    with ranks.workspace("fp16") as workspace:
        try:
            workspace.warmup([(ranks.scale.features, ranks.scale.depths[0])], tokens=[1])
        except CubinError:
            workspace.close()
            raise


def _require(kind: type[Exception], words: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")


@contextmanager
def _copy_of_bundle(ranks: Ranks, damage: Callable[[Bundle], None]) -> Iterator[None]:
    """Use a copy of this architecture's cubins, damaged, in place of the bundle."""
    bundle = find_bundle(ranks.arch)
    saved = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        copy = Path(folder, "bundle")
        shutil.copytree(bundle.folder, copy, ignore=lambda at, _: _others(at, bundle, ranks.arch))
        damage(read_bundle(copy))
        os.environ[VARIABLE] = str(copy)
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            if saved is not None:
                os.environ[VARIABLE] = saved


def _others(at: str, bundle: Bundle, arch: str) -> list[str]:
    return [a for a in bundle.archs if a != arch] if Path(at) == bundle.folder else []


def _change_all(bundle: Bundle) -> None:
    for path in bundle.folder.glob("sm_*/*.cubin"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _remove_all(bundle: Bundle) -> None:
    for path in bundle.folder.glob("sm_*/*.cubin"):
        path.unlink()


def _make_older(bundle: Bundle) -> None:
    path = bundle.folder / MANIFEST
    manifest = json.loads(path.read_text()) | {"version": "0.0.1"}
    path.write_text(json.dumps(manifest))
