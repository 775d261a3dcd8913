"""The plug-in inside SGLang 0.5.23: its own model runner, two ranks, CPUs, Triton's interpreter.

Nothing of SGLang's model code is replaced; `in_sglang/stand_ins.py` names the packages that are
not there. The operator is the real one. `in_sglang/cases.py` holds what is checked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sglang

HERE = Path(__file__).resolve().parent / "in_sglang"
RANKS = (0, 1)
TIME_LIMIT_S = 240
CASES = re.findall(r"^def (case_\w+)\(", (HERE / "cases.py").read_text(), re.M)
MISSING = [name for name in ("torch", "numpy", "triton") if not importlib.util.find_spec(name)]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)
if sys.version_info[:2] != (3, 11) or os.uname().machine != "x86_64":
    pytest.skip("its lock is for Python 3.11 on x86-64", allow_module_level=True)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes with SGLang; skipped where it cannot be had, except in CI."""
    sys.path.insert(0, str(HERE))
    from locked_tritons import IndexUnreachableError
    from place import environment

    try:
        return environment(tmp_path_factory.mktemp("metadata"))
    except IndexUnreachableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """Configurations of tiny models, in folders."""
    folder = tmp_path_factory.mktemp("models")
    code = "import sys, pathlib, configs; configs.write_models(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Outcomes = dict[tuple[int, str], str | None]


@pytest.fixture(scope="session")
def outcomes(environment: dict[str, str], models: Path) -> Outcomes:
    """Run all cases on both ranks; what went wrong in each, None where nothing did."""
    port, logs = free_port(), [models / f"rank-{rank}.log" for rank in RANKS]
    processes = []
    for rank, log in zip(RANKS, logs, strict=True):
        command = [sys.executable, str(HERE / "rank.py"), str(rank), str(port), str(models)]
        with log.open("w") as words:
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=words, text=True
                )
            )
    found: Outcomes = {}
    try:
        for rank, process in zip(RANKS, processes, strict=True):
            try:
                output, _ = process.communicate(timeout=TIME_LIMIT_S)
                end = f"exit code {process.returncode}"
            except subprocess.TimeoutExpired as expired:
                output = (expired.stdout or b"").decode()
                end = f"no end within {TIME_LIMIT_S} s"
            told = f"{end}: {logs[rank].read_text()[-3000:]}"
            found |= {(rank, case): told for case in CASES}
            found[rank, "end"] = None if end == "exit code 0" else told
            for line in output.splitlines():
                if line.startswith("{"):
                    outcome = json.loads(line)
                    found[rank, outcome["case"]] = outcome["error"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


@pytest.mark.parametrize("case", [*CASES, "end"])
def test_inside_sglang(case: str, outcomes: Outcomes) -> None:
    for rank in RANKS:
        assert outcomes[rank, case] is None, f"rank {rank}: {outcomes[rank, case]}"


@pytest.mark.by_hand
def test_one_batch_benchmark(environment: dict[str, str], models: Path, tmp_path: Path) -> None:
    """SGLang's own benchmark program, both ways: that it runs and fuses; no speed is meant."""
    module = "gemm_allreduce.integrations.sglang.bench_one_batch"
    own = ["--out", str(tmp_path / "out"), "--inputs", "8", "24", "--outputs", "3"]
    theirs = ["--model-path", str(models / "qwen2"), "--tp-size", "2", "--device", "cpu"]
    theirs += ["--load-format", "dummy", "--attention-backend", "torch_native"]
    theirs += ["--skip-tokenizer-init", "--dtype", "float16", "--max-total-tokens", "256"]
    theirs += ["--max-running-requests", "4", "--mem-fraction-static", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", module, *own, "--", *theirs],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "overlap armed for 3 down_proj, 3 o_proj on 2 ranks, 1 to 24 rows" in done.stderr
    assert (tmp_path / "out" / "one-batch.md").read_text() == done.stdout
    report = json.loads((tmp_path / "out" / "one-batch.json").read_text())
    assert [(row["mode"], row["input_tokens"]) for row in report["rows"]] == [
        ("native", 8),
        ("native", 24),
        ("overlap", 8),
        ("overlap", 24),
    ]
    passes = 3 * 3  # a warm-up and two lengths, each a prompt and two steps
    for rank in report["ranks"]:
        assert rank["fused"] == {"attention": 3 * passes, "ffn": 3 * passes}
        assert rank["native"] == {}


@pytest.mark.by_hand
def test_one_batch_benchmark_without_overlap_is_an_error(
    environment: dict[str, str], models: Path, tmp_path: Path
) -> None:
    """A server that declines: the overlap run measures nothing, and says why."""
    module = "gemm_allreduce.integrations.sglang.bench_one_batch"
    own = ["--out", str(tmp_path / "out"), "--inputs", "8", "--outputs", "2", "--mode", "overlap"]
    theirs = ["--model-path", str(models / "qwen2"), "--tp-size", "2", "--device", "cpu"]
    theirs += ["--load-format", "dummy", "--attention-backend", "torch_native"]
    theirs += ["--skip-tokenizer-init", "--dtype", "float32", "--max-total-tokens", "256"]
    theirs += ["--max-running-requests", "4", "--mem-fraction-static", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", module, *own, "--", *theirs],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the overlap run fused nothing: rank 0: " in last
    assert "its weight is torch.float32" in last
    assert not (tmp_path / "out").exists()
