"""The plug-in's pure parts: settings, conditions, the benchmark's plan and table. No SGLang."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gemm_allreduce.integrations.sglang import bench_one_batch
from gemm_allreduce.integrations.sglang.bench_plan import (
    BenchPlan,
    PlanError,
    markdown,
    missing,
    ranks_of,
    rows_of,
    why_not_fused,
)
from gemm_allreduce.integrations.sglang.conditions import (
    BOUNDARY,
    EXCLUSIONS,
    LINEAR,
    METHOD,
    Call,
    Server,
    Stage,
    decide,
    why_declined,
    why_native,
)
from gemm_allreduce.integrations.sglang.counters import Counters
from gemm_allreduce.integrations.sglang.facts import device_of
from gemm_allreduce.integrations.sglang.settings import (
    Settings,
    SettingsError,
    settings_of,
    tokens_of,
)

SOURCES = Path(__file__).resolve().parent.parent / "src"
SERVER = Server(
    device="cuda",
    tp_size=8,
    pp_size=1,
    nnodes=1,
    chunked_prefill_size=8192,
    attn_dp_enabled=False,
    attn_cp_size=1,
    dcp_enabled=False,
    layernorm_sp=False,
    lora=False,
    deterministic=False,
    rl_target=None,
    two_batch_overlap=False,
    single_batch_overlap=False,
    pdmux=False,
    moe_a2a_backend="none",
    elastic_ep_backend=None,
    quant_communications=False,
    symmetric_memory=False,
    torch_compile=False,
    megakernel=False,
)
O_PROJ = Stage(
    name="model.layers.0.self_attn.o_proj",
    kind="attention",
    owner="sglang.srt.models.qwen2.Qwen2Attention",
    linear=LINEAR,
    method=METHOD,
    boundary=BOUNDARY,
    features=8192,
    depth=1024,
    dtype="torch.bfloat16",
    bias_dtype=None,
    of_tp_group=True,
    plain_call=True,
    sums=False,
    plain_exit=True,
    untouched=True,
)
DOWN_PROJ = dataclasses.replace(
    O_PROJ,
    name="model.layers.0.mlp.down_proj",
    kind="ffn",
    owner="sglang.srt.models.qwen2.Qwen2MLP",
    depth=3696,
)
EXCLUDED: dict[str, tuple[object, ...]] = {
    "device": ("xpu", "hip", "cpu"),
    "tp_size": (1, 3, 16),
    "pp_size": (2,),
    "nnodes": (2,),
    "attn_dp_enabled": (True,),
    "attn_cp_size": (2,),
    "dcp_enabled": (True,),
    "layernorm_sp": (True,),
    "lora": (True,),
    "deterministic": (True,),
    "rl_target": ("fsdp",),
    "two_batch_overlap": (True,),
    "single_batch_overlap": (True,),
    "pdmux": (True,),
    "moe_a2a_backend": ("deepep",),
    "elastic_ep_backend": ("mooncake",),
    "quant_communications": (True,),
    "symmetric_memory": (True,),
    "torch_compile": (True,),
    "megakernel": (True,),
}


def test_settings() -> None:
    assert settings_of({}) is None
    assert settings_of({"SGL_USE_TP_OVERLAP": "0", "SGL_TP_OVERLAP_MAX_TOKENS": "x"}) is None
    on = {"SGL_USE_TP_OVERLAP": "1"}
    assert settings_of(on) == Settings(1, None)
    limits = {"SGL_TP_OVERLAP_MAX_TOKENS": "64", "SGL_TP_OVERLAP_MIN_TOKENS": "2"}
    assert settings_of(on | limits) == Settings(2, 64)
    for name, value in (("MAX", "many"), ("MIN", "-1"), ("MIN", "0"), ("MAX", "1.5"), ("MAX", "²")):
        with pytest.raises(SettingsError, match=f"SGL_TP_OVERLAP_{name}_TOKENS"):
            settings_of(on | {f"SGL_TP_OVERLAP_{name}_TOKENS": value})
    with pytest.raises(SettingsError, match="least <= most"):
        Settings(65, 64)


def test_the_range_of_rows_comes_from_sglangs_chunks() -> None:
    assert tokens_of(Settings(), 2048) == (1, 2048)
    assert tokens_of(Settings(), 16384) == tokens_of(Settings(), None) == (1, 8192)
    assert tokens_of(Settings(), -1) == (1, 8192)
    assert tokens_of(Settings(4, 16384), 2048) == (4, 16384)
    with pytest.raises(SettingsError, match="over the 2048 rows"):
        tokens_of(Settings(4096), 2048)


def test_a_plain_server_arms_everything() -> None:
    plan = decide(SERVER, [O_PROJ, DOWN_PROJ], 1, 8192)
    assert plan.arms and plan.stages == (O_PROJ, DOWN_PROJ) and plan.why_not() == ""
    assert plan.layers == [(8192, 1024), (8192, 3696)]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in EXCLUDED.items() for value in values]
)
def test_each_setting_declines(field: str, value: Any) -> None:
    plan = decide(dataclasses.replace(SERVER, **{field: value}), [O_PROJ], 1, 8192)
    assert not plan.arms and len(plan.server) == 1
    assert plan.why_not() == plan.server[0]


@pytest.mark.parametrize(
    ("name", "hip", "interpreted", "device"),
    [
        ("cuda", None, False, "cuda"),
        ("cuda:3", None, True, "cuda"),
        ("cuda", "6.4", False, "hip"),
        ("cpu", None, True, "interpreter"),
        ("cpu", None, False, "cpu"),
        ("npu", None, False, "npu"),
    ],
)
def test_devices(name: str, hip: str | None, interpreted: bool, device: str) -> None:
    assert device_of(name, hip, interpreted) == device


def test_no_exclusion_is_left_out() -> None:
    harmless = {"chunked_prefill_size"}
    assert {field.name for field in dataclasses.fields(Server)} == set(EXCLUDED) | harmless
    reasons = {
        reason
        for field, values in EXCLUDED.items()
        for value in values
        for reason in decide(dataclasses.replace(SERVER, **{field: value}), [], 1, 1).server
    }
    assert reasons == {exclusion.reason for exclusion in EXCLUSIONS}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("owner", "sglang.srt.models.qwen2_moe.Qwen2MoeMLP", "not in the list of owners"),
        ("owner", "sglang.srt.models.qwen2.Qwen2MLP", "not in the list of owners"),
        ("linear", "sglang.srt.lora.layers.RowParallelLinearWithLoRA", "RowParallelLinearWithLoRA"),
        ("method", "sglang.srt.layers.quantization.fp8.Fp8LinearMethod", "Fp8LinearMethod"),
        ("boundary", "", "its boundary is a none"),
        ("of_tp_group", False, "not spread over the tensor-parallel group"),
        ("plain_call", False, "its input is not spread"),
        ("sums", True, "sums its output itself"),
        ("plain_exit", False, "more than a sum"),
        ("untouched", False, "something else has hooked it"),
        ("dtype", "torch.float32", "its weight is torch.float32"),
        ("bias_dtype", "torch.float32", "its bias is torch.float32"),
        ("features", 8196, "N is 8196, no multiple of 8"),
        ("depth", 3700, "K of a rank is 3700, no multiple of 8"),
    ],
)
def test_each_stage_condition_declines(field: str, value: Any, words: str) -> None:
    stage = dataclasses.replace(O_PROJ, **{field: value})
    assert words in why_declined(stage)
    plan = decide(SERVER, [stage, DOWN_PROJ], 1, 8192)
    assert plan.stages == (DOWN_PROJ,)
    assert plan.why_not() == f"{O_PROJ.name}: {why_declined(stage)}"


def test_the_log_names_each_reason_once() -> None:
    bad = [dataclasses.replace(O_PROJ, name=f"layers.{i}.o_proj", method="Fp8") for i in range(3)]
    plan = decide(SERVER, bad, 1, 8192)
    assert not plan.arms
    assert plan.why_not() == "layers.0.o_proj and 2 more: its weight is for Fp8"
    assert decide(SERVER, [], 1, 1).why_not() == "the model has no layer of a known kind"
    mixed = decide(SERVER, [O_PROJ, dataclasses.replace(DOWN_PROJ, dtype="torch.float16")], 1, 1)
    assert not mixed.arms and "types differ: torch.bfloat16, torch.float16" in mixed.why_not()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"compiling": True}, "torch.compile is tracing"),
        ({"variant": "SEQUENCE_PARALLEL"}, "a batch of the SEQUENCE_PARALLEL kind"),
        ({"variant": "INPUT_SCATTERED"}, "a batch of the INPUT_SCATTERED kind"),
        ({"rows": None}, "the input is quantized"),
        ({"rows": 0}, "no rows"),
        ({"rows": 1}, "fewer than 2 rows"),
        ({"rows": 2}, ""),
        ({"rows": 64}, ""),
        ({"rows": 65}, "more than 64 rows"),
        ({"fused_norm": True}, "SGLang's own fused all-reduce takes it"),
    ],
)
def test_each_call_condition(changes: dict[str, Any], reason: str) -> None:
    call = dataclasses.replace(Call(16, "ORDINARY", False, False), **changes)
    assert why_native(call, 2, 64) == reason


def test_counters() -> None:
    counters = Counters()
    assert str(counters) == "0 fused calls, 0 native"
    for _ in range(3):
        counters.count_fused("ffn")
        counters.count_native("no rows")
    assert str(counters) == "3 fused calls (ffn 3), 3 native (3 x no rows)"
    assert counters.as_dict()["native"] == {"no rows": 3}


@pytest.mark.parametrize("switch", [None, "0", "", "true"])
def test_switched_off_nothing_is_imported(switch: str | None) -> None:
    code = (
        "import sys; from gemm_allreduce.integrations.sglang import plugin; plugin.register();"
        "assert plugin.STATE.as_dict()['switched_on'] is False;"
        "print([m for m in ('torch', 'sglang', 'triton', "
        "'gemm_allreduce.integrations.sglang.arm') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"]}
    if switch is not None:
        environment["SGL_USE_TP_OVERLAP"] = switch
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]" and done.stderr == ""


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "does not have sglang.srt.model_executor.model_runner.ModelRunner.initialize"),
        ({"SGL_TP_OVERLAP_MAX_TOKENS": "lots"}, "SGL_TP_OVERLAP_MAX_TOKENS must be a number"),
    ],
)
def test_what_cannot_be_hooked_is_one_line(variables: dict[str, str], words: str) -> None:
    """Without SGLang, or with a bad setting: told, and nothing raised that SGLang would swallow."""
    code = (
        "import sys; sys.modules['sglang'] = None\n"
        "from gemm_allreduce.integrations.sglang import plugin\n"
        "plugin.register(); assert plugin.STATE.problem"
    )
    environment = {"PYTHONPATH": str(SOURCES), "SGL_USE_TP_OVERLAP": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("SGL_USE_TP_OVERLAP=1, but this process keeps the native path: ")
    assert words in line


# ---------------------------------------------------------------- the benchmark

ARGUMENTS = ("--model-path", "/models/m", "--tp-size", "8")


def result(mode: str, tokens: int, latency: float) -> str:
    return json.dumps(
        {
            "run_name": mode,
            "batch_size": 1,
            "input_len": tokens,
            "output_len": 16,
            "prefill_latency": latency,
            "prefill_throughput": tokens / latency,
            "median_decode_latency": 0.02,
            "median_decode_throughput": 50.0,
            "total_latency": 1.0,
            "overall_throughput": 9.0,
        }
    )


def test_the_plan_of_the_benchmark() -> None:
    plan = BenchPlan(ARGUMENTS)
    assert plan.inputs == (1000, 2000, 4000, 8000) and ranks_of(plan) == 8
    command = plan.command("overlap", "out.jsonl")
    assert command[:4] == list(ARGUMENTS)
    assert command[command.index("--input-len") + 1 :] == ["1000", "2000", "4000", "8000"]
    assert command[command.index("--run-name") + 1] == "overlap"
    given = {"SGL_USE_TP_OVERLAP": "1", "HOME": "/h"}
    assert plan.environment("native", given) == {"HOME": "/h"}
    most = {"SGL_TP_OVERLAP_MAX_TOKENS": "8000"}
    assert plan.environment("overlap", {"HOME": "/h"}) == given | most
    own = {"SGL_TP_OVERLAP_MAX_TOKENS": "16"}
    assert plan.environment("overlap", own)["SGL_TP_OVERLAP_MAX_TOKENS"] == "16"
    assert ranks_of(BenchPlan(("--tp=4",))) == 4


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("--model-path", "m"), {}),
        (("--tp-size", "1"), {}),
        (("--tp-size",), {}),
        ((*ARGUMENTS, "--input-len", "5"), {}),
        ((*ARGUMENTS, "--result-filename=x"), {}),
        (ARGUMENTS, {"inputs": ()}),
        (ARGUMENTS, {"inputs": (0,)}),
        (ARGUMENTS, {"outputs": 1}),
        (ARGUMENTS, {"batch": 0}),
    ],
)
def test_what_makes_no_benchmark(arguments: tuple[str, ...], options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        BenchPlan(arguments, **options)


def test_the_table() -> None:
    lines = [result("native", 1000, 0.2), result("overlap", 1000, 0.1), "", result("native", 8, 1)]
    rows = rows_of(lines)
    text = markdown(rows)
    prefill, decode = text.split("\n\n**Decode")
    assert "| 1000 | 0.20000 | 5000.00 | 0.10000 | 10000.00 | 2.000 |" in prefill.splitlines()
    assert "| 8 | 1.00000 | 8.00 |  |  |  |" in prefill.splitlines()
    assert "| 1000 | 0.02000 | 50.00 | 0.02000 | 50.00 | 1.000 |" in decode.splitlines()
    plan = BenchPlan(ARGUMENTS, inputs=(8, 1000))
    assert missing(plan, "native", rows) == [] and missing(plan, "overlap", rows) == [8]
    for bad in ("{", "{}", "[]", result("native", 8, 1).replace("0.02", '"soon"')):
        with pytest.raises(PlanError, match="not a result"):
            rows_of([bad])


def test_a_run_that_fused_nothing_is_no_overlap() -> None:
    plan = BenchPlan(ARGUMENTS)
    good = {"problem": "", "armed": ["o"], "declined": "", "fused": {"ffn": 3}, "native": {}}
    good |= {"hooked": True}
    assert why_not_fused(plan, [good, good], 2) == ""
    assert why_not_fused(plan, [good], 2) == "1 of 2 ranks told what they did"
    for changes, words in (
        ({"problem": "swallowed"}, "rank 1: swallowed"),
        ({"armed": [], "declined": "LoRA"}, "rank 1: LoRA"),
        (
            {"fused": {}, "native": {"no rows": 2}},
            "nothing was fused; native calls: {'no rows': 2}",
        ),
    ):
        assert words in why_not_fused(plan, [good, good | changes], 2)


def test_the_program_shows_its_plan_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_one_batch.main(["--dry", "--", *ARGUMENTS]) == 0
    native, overlap = capsys.readouterr().out.splitlines()
    assert native.startswith("native: --model-path /models/m --tp-size 8 --run-name native")
    assert overlap.startswith("overlap: ") and overlap.endswith("--input-len 1000 2000 4000 8000")
    assert bench_one_batch.main(["--dry"]) == 2
    assert "go after --" in capsys.readouterr().err
    assert bench_one_batch.main(["--dry", "--", "--model-path", "m", "--tp-size", "1"]) == 2
    assert "nothing to overlap" in capsys.readouterr().err
    assert bench_one_batch.main(["--", *ARGUMENTS]) == 3
    assert "not installed" in capsys.readouterr().err


PROGRAM = """
import json, os, subprocess, sys, time
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
mode, where = told["--run-name"], os.environ["GEMM_AR_BENCH_STATES"]
assert (os.environ.get("SGL_USE_TP_OVERLAP") == "1") == (mode == "overlap")
print("words of SGLang")
if told["--model-path"] == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.environ["CHILD"], "w").write(str(child.pid))
    time.sleep(600)
rows = [] if told["--model-path"] == "fails" else [8, 16]
with open(told["--result-filename"], "a") as out:
    for tokens in rows:
        row = dict(run_name=mode, batch_size=1, input_len=tokens, output_len=16)
        row |= dict(prefill_latency=0.5, prefill_throughput=tokens / 0.5)
        row |= dict(median_decode_latency=0.25, median_decode_throughput=4.0)
        out.write(json.dumps(row) + "\\n")
fused = {"ffn": 9} if told["--model-path"] == "good" else {}
for rank in range(2):
    state = dict(problem="", armed=["o_proj"], declined="", fused=fused, native={"no rows": 1})
    state |= dict(hooked=True)
    open(f"{where}/rank-{rank}.json", "w").write(json.dumps(state))
"""
"""Does to the launcher what SGLang's benchmark does: arguments, files, words, ends."""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the launcher on a model's name; return exit code, stdout, stderr."""
    (tmp_path / "path" / "sglang").mkdir(parents=True)
    (tmp_path / "path" / "sglang" / "__init__.py").write_text("")
    (tmp_path / "path" / "program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    monkeypatch.setattr(bench_one_batch, "_RANK", "program")

    def run(model: str, *own: str) -> tuple[int, str, str]:
        arguments = ["--out", str(tmp_path / "out"), "--inputs", "8", "16", *own, "--"]
        code = bench_one_batch.main([*arguments, "--model-path", model, "--tp-size", "2"])
        return code, *capfd.readouterr()

    return run


def test_the_program_writes_both_files(launch: Any, tmp_path: Path) -> None:
    code, out, err = launch("good")
    assert code == 0 and "words of SGLang" in err
    assert (tmp_path / "out" / "one-batch.md").read_text() == out
    assert "| 8 | 0.50000 | 16.00 | 0.50000 | 16.00 | 1.000 |" in out.splitlines()
    report = json.loads((tmp_path / "out" / "one-batch.json").read_text())
    assert report["plan"]["inputs"] == [8, 16] and len(report["rows"]) == 4
    assert [rank["fused"] for rank in report["ranks"]] == [{"ffn": 9}] * 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one-batch.json",
        "one-batch.md",
    ]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("fails", "the native run (exit status 0) has no result for 8, 16 input tokens"),
        ("unfused", "the overlap run fused nothing: rank 0: nothing was fused; native calls: "),
    ],
)
def test_a_run_without_a_result_writes_nothing(
    launch: Any, tmp_path: Path, model: str, words: str
) -> None:
    code, out, err = launch(model)
    assert code == 1 and out == "" and words in err
    assert not (tmp_path / "out").exists()


def test_a_run_that_hangs_is_ended_with_all_that_it_started(launch: Any, tmp_path: Path) -> None:
    code, out, err = launch("hangs", "--limit", "2")
    assert code == 6 and out == "" and "ended after 2 s (--limit)" in err
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
