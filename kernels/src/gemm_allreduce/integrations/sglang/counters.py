"""How many calls were fused, how many were not, and why."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Final

_LOG: Final = logging.getLogger("gemm_allreduce")


class Counters:
    """Counts of one process. A captured CUDA graph counts when it is captured, not when replayed.

    Attributes:
        fused: calls by kind of stage.
        native: calls of armed stages that took the native path, by reason.
        stream_moves: how often the workspace had to follow SGLang to another stream, each time
            with a wait for the device.
    """

    def __init__(self) -> None:
        self.fused: Counter[str] = Counter()
        self.native: Counter[str] = Counter()
        self.stream_moves = 0

    def count_fused(self, kind: str) -> None:
        """Count a fused call."""
        self.fused[kind] += 1

    def count_native(self, reason: str) -> None:
        """Count a native call; the first one of a reason is told."""
        if not self.native[reason]:
            _LOG.info("gemm_allreduce: a call takes the native path: %s", reason)
        self.native[reason] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-ready data."""
        return {
            "fused": dict(self.fused),
            "native": dict(self.native),
            "stream_moves": self.stream_moves,
        }

    def __str__(self) -> str:
        """Return one sentence."""
        total = sum(self.fused.values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.fused.items()))
        native = "; ".join(f"{count} x {reason}" for reason, count in self.native.most_common())
        return (
            f"{total} fused calls{f' ({kinds})' if kinds else ''}, "
            f"{sum(self.native.values())} native{f' ({native})' if native else ''}"
        )
