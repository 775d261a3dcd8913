"""What every interpreted rank imports: loaded once, by the process that the ranks are forked from.

Imports take seconds on each rank, and a pool is needed anew after every failure.
"""

from __future__ import annotations

import contextlib

# What is missing here a rank will miss as well, and say so.
with contextlib.suppress(ImportError):
    import torch.distributed
    import triton.language

    import gemm_allreduce.transports.shared
    import smoke_tests.checks.registry as registry

    registry.load()
