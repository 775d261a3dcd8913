"""A rank that is missing: the others report it in time, and say who."""

from __future__ import annotations

import os
import signal
import time

import torch

from gemm_allreduce import PeerTimeoutError, Workspace
from smoke_tests.checks.registry import PROCESSES, check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, expected, require_equal


def _third_call_without_the_last_rank(ranks: Ranks, *, kill: bool) -> str:
    """Rank W - 1 makes two calls and then no more; every other rank must report it."""
    scale, w = ranks.scale, ranks.world_size
    limit_s = 1.0 if ranks.kind == "cpu" else 3.0
    source = Source(ranks.device, 130)
    workspace = ranks.open(
        {
            "max_tokens": scale.max_tokens,
            "max_features": scale.features,
            "dtype": torch.float16,
            "time_limit_s": limit_s,
        }
    )
    weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
    for tokens in (1, 64):
        x = source.integers(workspace.dtype, w, tokens, scale.depths[0])
        y = ranks.call(workspace, x, weight)
        require_equal(y[0], expected(x, weight, workspace.dtype), f"M {tokens}")
    workspace.check()
    ranks.gather(None)
    said = "stayed away"
    if ranks.rank != w - 1:
        said = _report_of(ranks, workspace, weight, limit_s)
    elif kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if not kill:
        ranks.gather(None)
        with ranks.step("close the workspace"):
            workspace.close()  # all ranks are alive: this works after a failure too
    return said


def _report_of(ranks: Ranks, workspace: Workspace, weight: torch.Tensor, limit_s: float) -> str:
    x = Source(ranks.device, 131).integers(workspace.dtype, ranks.world_size, 64, weight.shape[2])
    begin = time.monotonic()
    try:
        ranks.call(workspace, x, weight)
        workspace.check()
    except PeerTimeoutError as error:
        said = str(error)
    else:
        raise AssertionError("the missing rank was not reported")
    took = time.monotonic() - begin
    # With more than two ranks a peer may have given up first, and be the one that is named.
    named = f"of rank {ranks.world_size - 1}" if ranks.world_size == 2 else "of rank"
    assert f"rank {ranks.rank} gave up waiting" in said, said
    assert named in said, said
    assert took < limit_s * 10, f"reported after {took:.1f} s, limit {limit_s} s"
    try:
        ranks.call(workspace, x, weight)
    except PeerTimeoutError:
        return f"limit {limit_s:g} s, reported after {took:.1f} s"
    raise AssertionError("a call after the failure was let through")


@check(*PROCESSES, least_ranks=2)
def a_skipped_call_is_reported(ranks: Ranks) -> str:
    """One rank does not make a call that the others make."""
    return _third_call_without_the_last_rank(ranks, kill=False)


@check(*PROCESSES, ends_ranks=True, least_ranks=2)
def a_killed_rank_is_reported(ranks: Ranks) -> str:
    """One rank dies between two calls."""
    return _third_call_without_the_last_rank(ranks, kill=True)
