"""SGLang's one-batch benchmark with plug-ins: `python -m ...bench_rank ARGUMENTS OF SGLANG`.

SGLang's own program never loads plug-ins. This one runs it unchanged but for its ranks, which load
them first, as a server's do, and write down at their end what the plug-in did.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

STATES: Final = "GEMM_AR_BENCH_STATES"
"""The folder that gets `rank-N.json` of each rank."""


def latency_test(
    server_args: Any, port_args: Any, bench_args: Any, gpu_id: int, tp_rank: int
) -> None:
    """Be one rank: SGLang's latency_test after its plug-ins. In a new process, by name."""
    from sglang.benchmark import one_batch
    from sglang.srt.plugins import load_plugins

    from .plugin import STATE

    load_plugins()
    try:
        one_batch.latency_test(server_args, port_args, bench_args, gpu_id, tp_rank)
    finally:
        path = Path(os.environ[STATES], f"rank-{tp_rank}.json")
        path.write_text(json.dumps(STATE.as_dict()))


def main() -> None:
    """Run SGLang's program with `latency_test` above in its ranks."""
    from sglang.benchmark import one_batch

    # By the module's own name, not as __main__: a rank finds it by importing it.
    from gemm_allreduce.integrations.sglang import bench_rank

    one_batch.latency_test = bench_rank.latency_test
    one_batch.cli_main()


if __name__ == "__main__":
    main()
