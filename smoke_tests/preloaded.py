"""What every interpreted rank imports: loaded once, by the process that the ranks are forked from.

Imports take seconds on each rank, and a pool is needed anew after every failure.
"""

from __future__ import annotations

import contextlib
from importlib import import_module

# What is missing here a rank will miss as well, and say so.
with contextlib.suppress(ImportError):
    for _name in ("torch.distributed", "triton.language", "gemm_allreduce.transports.shared"):
        import_module(_name)
    import_module("smoke_tests.checks.registry").load()
