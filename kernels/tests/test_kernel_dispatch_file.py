"""GEMM_AR_DISPATCH: a file of rules before the package's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_kernel_interpreter import needs_interpreter

import gemm_allreduce
from gemm_allreduce import dispatch
from gemm_allreduce.dispatch import Shape, choose, package_rules, rules, table_digest, token_steps

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
RULE = """
[[rule]]
algorithm = "two_shot"
world_sizes = [8]
archs = ["sm_90"]
min_processors = 78
max_processors = 78
max_tokens = 40
tile = [64, 256, 64, 2, 4]
split = true
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    for cached in (rules, choose):
        cached.cache_clear()
    yield
    for cached in (rules, choose):
        cached.cache_clear()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "h20.toml"
    file.write_text(RULE)
    monkeypatch.setenv(dispatch.TABLE_VARIABLE, str(file))
    return file


def test_its_rules_come_first_and_only_for_the_gpu_they_name(table: Path) -> None:
    def name(m: int, processors: int, arch: str = "sm_90") -> str:
        return choose(Shape(m, 8192, 1024, 8, arch, processors=processors)).variant.name

    tuned = "two_shot_bf16_w8_split_64x256x64_stages2_warps4"
    assert name(16, 78) == name(40, 78) == tuned
    before = [name(41, 78), name(16, 79), name(16, 77), name(16, 78, "sm_80")]
    assert tuned not in before
    assert rules()[1:] == package_rules()
    assert 40 in token_steps(8192, 8192)
    assert tuned in {v.name for v in dispatch.reachable_variants("sm_90")}
    table.unlink()  # read once
    assert name(16, 78) == tuned


def test_the_digest_is_of_all_rules_in_force(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = table_digest()
    table.write_text(RULE.replace("40", "41"))
    rules.cache_clear()
    assert table_digest() != first
    monkeypatch.delenv(dispatch.TABLE_VARIABLE)
    rules.cache_clear()
    own = table_digest()
    assert own != first
    assert rules() == package_rules()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("", "it must hold [[rule]] entries only, got none"),
        ("[gpu]\nname = 1\n" + RULE, "it must hold [[rule]] entries only, got gpu, rule"),
        (RULE.replace("two_shot", "ring"), "rule 1 of the dispatch table: algorithm must be"),
        (RULE + "tile", "after a key"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(
    table: Path, text: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        table.unlink()
    else:
        table.write_text(text)
    with pytest.raises(ValueError, match="GEMM_AR_DISPATCH names") as caught:
        rules()
    assert words in str(caught.value)
    assert str(table) in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        dispatch.main(["16", "8192", "1024", "8", "sm_90"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


RANK = """
import sys, torch
import torch.distributed as dist
from gemm_allreduce import Workspace
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
try:
    Workspace(dist.group.WORLD, max_tokens=16, max_features=64, dtype=torch.float16)
except ValueError as error:
    print(error)
"""


@needs_interpreter
@pytest.mark.parametrize("damaged", [False, True])
def test_ranks_with_different_tables_are_all_refused(table: Path, damaged: bool) -> None:
    if damaged:
        table.write_text("[[rule]]")
    said = []
    for rank in range(2):
        variables = {
            "PYTHONPATH": str(SOURCES),
            "TRITON_INTERPRET": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        environment = os.environ | variables | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if rank == 0:
            del environment[dispatch.TABLE_VARIABLE]
        command = [sys.executable, "-c", RANK, str(table.parent), str(rank)]
        said.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    words = [process.communicate(timeout=240)[0] for process in said]
    assert words[0] == words[1]
    expected = "rank 1: GEMM_AR_DISPATCH names" if damaged else "dispatch table differs between"
    assert words[0].startswith(expected)
