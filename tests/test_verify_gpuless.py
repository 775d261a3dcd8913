"""The launcher that stands in for a GPU: stock Triton, and stand-ins for Triton-distributed.

The fork itself cannot be had everywhere. A stand-in is stock Triton 3.4.0 that asks for its driver
at import, and a `triton_dist` that asks for nvidia-smi and for the device's name.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tdstack.verify import gpuless
from tdstack.verify.environment import Environment, find_environment
from tdstack.verify.imports import check_imports

LAUNCHER = Path(gpuless.__file__)
SITE = Path(sysconfig.get_path("purelib"))
NOTE = gpuless.NOTE.format("sm_90")
ARGV = "import os, sys; print([sys.argv, sys.path, __name__, getattr(__spec__, 'name', None)])"

needs_triton = pytest.mark.skipif(
    not (SITE / "triton" / "_C" / "libtriton.so").exists(), reason="stock Triton is not installed"
)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)

KERNEL_TESTS = Path(__file__).resolve().parent.parent / "kernels" / "tests"

# What the fork does when a kernel is decorated, which its own library does at import.
ASKS_AT_IMPORT = """

def _asked_at_import():
    active = driver.active
    concrete = active._initialize_obj() if hasattr(active, "_initialize_obj") else active
    return concrete.get_current_target(), concrete


ASKED = _asked_at_import()
"""
TRITON_DIST = """
import shutil
if not shutil.which("nvidia-smi"):
    raise Exception("either CUDA or HIP platform is supported")
import torch
import triton
NAME = torch.cuda.get_device_name(torch.cuda.current_device())
PROCESSORS = torch.cuda.get_device_properties(0).multi_processor_count
HOPPER = torch.cuda.get_device_capability()[0] >= 9
"""
KERNEL = """
import sys
import triton, triton.language as tl
from triton.compiler import ASTSource
from triton.runtime.driver import driver

@triton.jit
def twice(x_ptr, y_ptr):
    at = tl.arange(0, 32)
    tl.store(y_ptr + at, tl.load(x_ptr + at) * 2)

module = sys.modules["triton.runtime.driver"]
print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
print(driver.active.get_current_target())
compiled = triton.compile(ASTSource(twice, {"x_ptr": "*fp32", "y_ptr": "*fp32"}, {}))
print(".target " + compiled.asm["ptx"].split(".target ")[1].split()[0].rstrip(","))
print(compiled.asm["cubin"][:4] == b"\\x7fELF")
for launch in (lambda: twice[(1,)](0, 0), lambda: compiled[(1,)](0, 0), lambda: compiled.run):
    try:
        launch()
    except RuntimeError as error:
        print(type(error).__name__, error)
print(driver.active.map_python_to_cpp_type("*fp32"), driver.active.get_current_device())
"""


def newer_tritons() -> list[str]:
    versions = (path.stem.removeprefix("triton-") for path in KERNEL_TESTS.glob("triton-*.lock"))
    return sorted(version for version in versions if version != "3.4.0")


def newer_triton(version: str) -> Path:
    """Return the folder that the tests of the kernels keep a Triton in; skip if it is absent."""
    spec = importlib.util.spec_from_file_location("locked", KERNEL_TESTS / "locked_tritons.py")
    assert spec is not None
    assert spec.loader is not None
    locked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(locked)
    try:
        return Path(locked.folder_of(version))
    except locked.IndexUnreachableError as error:
        pytest.skip(str(error))


def make_environment(folder: Path, packages: bool = True) -> Environment:
    command = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)]
    subprocess.run(command, check=True)
    environment = find_environment(folder)
    if packages:  # behind its own, as a distribution's packages are
        (environment.site / "running.pth").write_text(f"{SITE}\n")
    return environment


def copy_small(source: str, target: str) -> None:
    if Path(source).stat().st_size > 1 << 20:
        os.symlink(source, target)
    else:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def copy_triton(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "profiler", "instrumentation", "cupti")
    shutil.copytree(SITE / "triton", target, copy_function=copy_small, ignore=ignored)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("bare") / "env", packages=False)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("stock") / "env")


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = make_environment(tmp_path_factory.mktemp("fork") / "env")
    copy_triton(environment.site / "triton")
    with (environment.site / "triton/runtime/jit.py").open("a") as stream:
        stream.write(ASKS_AT_IMPORT)
    (environment.site / "triton_dist").mkdir()
    (environment.site / "triton_dist/__init__.py").write_text(TRITON_DIST)
    return environment


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Return the folder that programs put their temporary files in."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path) -> None:
    """Make every program below see a host without GPU, nvidia-smi or settings for Python."""
    for name in list(os.environ):
        if name.startswith(("PYTHON", "TRITON_")):
            monkeypatch.delenv(name)
    folders = os.environ["PATH"].split(os.pathsep)
    kept = [f for f in folders if f and not Path(f, "nvidia-smi").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(kept))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def run(
    environment: Environment, *words: str | Path, launcher: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [environment.python, *([LAUNCHER] if launcher else []), *words]
    return subprocess.run(
        [str(word) for word in command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


# Triton


@needs_triton
def test_the_stand_in_for_the_fork_dies_without_the_stub(fork: Environment) -> None:
    done = run(fork, "-c", "import triton", launcher=False)
    assert done.returncode == 1
    assert "0 active drivers" in last_line(done)


@needs_triton
@pytest.mark.parametrize("flavour", ["stock", "fork"])
def test_a_kernel_compiles_and_none_is_launched(
    flavour: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment: Environment = request.getfixturevalue(flavour)
    check_kernel(environment, tmp_path)


@needs_triton
@pytest.mark.parametrize("version", newer_tritons())
def test_newer_tritons_take_the_stub_as_well(
    bare: Environment, version: str, tmp_path: Path
) -> None:
    check_kernel(bare, tmp_path, PYTHONPATH=str(newer_triton(version)))


def check_kernel(environment: Environment, folder: Path, **variables: str) -> None:
    program = folder / "kernel.py"
    program.write_text(KERNEL)
    done = run(environment, program, launcher=True, PYTHONDONTWRITEBYTECODE="1", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == NOTE
    assert done.stderr.count(gpuless.NAME) == 1
    loaders, target, ptx, elf, *refusals, last = done.stdout.splitlines()
    assert loaders == "SourceFileLoader SourceFileLoader"
    assert target == "GPUTarget(backend='cuda', arch=90, warp_size=32)"
    assert (ptx, elf) == (".target sm_90a", "True")
    assert len(refusals) == 3
    assert all(r.startswith(f"NoGpuError {gpuless.REFUSAL}") for r in refusals)
    assert last == "CUdeviceptr 0"


@needs_triton
def test_the_architecture_named_is_the_target(stock: Environment) -> None:
    code = (
        "from triton.runtime.driver import driver as d; print(d.active.get_current_target().arch)"
    )
    done = run(stock, "--arch", "sm_120", "-c", code)
    assert (done.stdout, done.stderr) == ("120\n", f"{gpuless.NOTE.format('sm_120')}\n")


@needs_triton
def test_a_triton_imported_before_the_stub_gets_it_too(stock: Environment) -> None:
    code = f"""
import runpy, triton
main = runpy.run_path({str(LAUNCHER)!r})["main"]
main(["-c", "import triton; print(triton.runtime.driver.active.get_current_target().arch)"])
"""
    done = run(stock, "-c", code, launcher=False)
    assert done.stdout == "90\n", done.stderr


@needs_triton
def test_the_kernels_compile_under_it_to_the_same_bytes(
    fork: Environment, stock: Environment, root: Path, tmp_path: Path
) -> None:
    sources = {"PYTHONPATH": str(root / "kernels/src"), "PYTHONDONTWRITEBYTECODE": "1"}
    digests: list[list[tuple[str, str]]] = []
    for environment, launcher in [(stock, False), (stock, True), (fork, True)]:
        out = tmp_path / f"out{len(digests)}"
        words = ["-m", "gemm_allreduce.compile", "--quick", "--json", "--out", str(out)]
        words += ["--arch", "sm_90", "--arch", "sm_80"]
        done = run(environment, *words, launcher=launcher, **sources)
        assert done.returncode == 0, done.stderr
        digests.append([(c["arch"], c["sha256"]) for c in json.loads(done.stdout)["cubins"]])
        assert done.stderr.count(NOTE) == launcher
    assert digests[0] == digests[1] == digests[2]
    assert [arch for arch, _ in digests[0]] == ["sm_80", "sm_90"]


# nvidia-smi and torch


@needs_triton
@needs_torch
def test_what_triton_dist_asks_at_import_is_answered(fork: Environment) -> None:
    plain = run(fork, "-c", "import triton_dist", launcher=False)
    assert last_line(plain) == "Exception: either CUDA or HIP platform is supported"
    code = (
        "import triton, triton_dist as t; print(t.NAME, t.PROCESSORS, t.HOPPER);"
        "d = triton.runtime.driver.active;"
        "print(d.get_active_torch_device(), d.get_device_interface().__name__)"
    )
    done = run(fork, "-c", code)
    assert done.stdout == "NVIDIA GPU-less stub (sm_90) 132 True\ncuda:0 torch.cuda\n", done.stderr
    assert done.stderr == f"{NOTE}\n"


@needs_torch
def test_torch_still_says_that_there_is_no_gpu(stock: Environment) -> None:
    code = (
        "import torch; c = torch.cuda; print(c.is_available(), c.device_count());"
        "print(c.get_device_capability(0), c.get_device_properties('cuda').name);"
        "torch.zeros(1, device='cuda')"
    )
    done = run(stock, "--arch=sm_86", "-c", code)
    assert done.stdout == "False 0\n(8, 6) NVIDIA GPU-less stub (sm_86)\n", done.stderr
    assert done.returncode == 1
    assert "CUDA" in last_line(done)  # torch's own refusal


def test_torch_with_a_gpu_is_left_alone(bare: Environment, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("from . import cuda\n")
    (tmp_path / "torch/cuda.py").write_text(
        "def is_available(): return AVAILABLE\n"
        "def get_device_name(device=None): return 'real'\n"
        "def get_device_capability(device=None): return 'real'\n"
    )
    code = (
        "from importlib.util import find_spec as find;"
        "print(find('torch').loader.get_source('torch'));"
        "import torch.cuda as c; print(c.get_device_name(), c.get_device_capability())"
    )
    shown = {"True": "real real", "False": "NVIDIA GPU-less stub (sm_90) (9, 0)"}
    for available, answers in shown.items():
        with (tmp_path / "torch/cuda.py").open("a") as stream:
            stream.write(f"AVAILABLE = {available}\n")
        done = run(bare, "-c", code, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
        assert done.stdout == f"from . import cuda\n\n{answers}\n", done.stderr


def test_nvidia_smi_is_put_last_and_only_fails(bare: Environment, scratch: Path) -> None:
    code = (
        "import os, subprocess; print(os.environ['PATH']);"
        "print(subprocess.run(['nvidia-smi', '-L']).returncode);"
        "print(os.listdir(os.environ['TMPDIR']))"
    )
    done = run(bare, "-c", code)
    path, status, during = done.stdout.splitlines()
    *before, added = path.split(os.pathsep)
    assert os.pathsep.join(before) == os.environ["PATH"]
    assert Path(added).parent == scratch
    assert ast.literal_eval(during) == [Path(added).name]
    assert status == "9"
    assert done.stderr == f"{NOTE}\nnvidia-smi: {gpuless.REFUSAL}\n"
    assert list(scratch.iterdir()) == []


def test_a_nvidia_smi_that_is_there_is_kept(
    bare: Environment, tmp_path: Path, scratch: Path
) -> None:
    own = tmp_path / "bin"
    own.mkdir()
    (own / "nvidia-smi").write_text("#!/bin/sh\n")
    (own / "nvidia-smi").chmod(0o755)
    path = f"{os.environ['PATH']}{os.pathsep}{own}"
    code = "import os; print(os.environ['PATH']); print(os.listdir(os.environ['TMPDIR']))"
    done = run(bare, "-c", code, PATH=path)
    # Nothing was replaced, so nothing is said.
    assert (done.stdout, done.stderr) == (f"{path}\n[]\n", "")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('no')", 1),
        ("import os; pid = os.fork(); pid or exit(4); assert os.waitpid(pid, 0)[1] == 4 << 8;"
         "import shutil; exit(0 if shutil.which('nvidia-smi') else 5)", 0),
    ],
)  # fmt: skip
def test_no_files_are_left_behind(bare: Environment, scratch: Path, code: str, status: int) -> None:
    done = run(bare, "-c", code)
    assert done.returncode == status, done.stderr
    assert NOTE in done.stderr
    assert list(scratch.iterdir()) == []


# A GPU that can be used


FAKE_CUDA = """
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
"""
REPLACED = """
import os, shutil, sys
print(shutil.which("nvidia-smi") is not None, type(sys.meta_path[0]).__name__)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
@pytest.mark.parametrize(
    ("init", "count", "usable"), [(0, 1, True), (0, 0, False), (100, 1, False)]
)
def test_a_driver_with_a_device_is_never_shadowed(
    bare: Environment, tmp_path: Path, init: int, count: int, usable: bool
) -> None:
    library = tmp_path / "libcuda.so.1"
    source = tmp_path / "cuda.c"
    source.write_text(FAKE_CUDA.replace("INIT", str(init)).replace("COUNT", str(count)))
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    done = run(bare, "-c", REPLACED, LD_LIBRARY_PATH=str(tmp_path))
    if usable:
        plain = run(bare, "-c", REPLACED, launcher=False)
        assert (done.stdout, done.stderr) == (plain.stdout, "")
    else:
        assert (done.stdout, done.stderr) == ("True PatchingFinder\n", f"{NOTE}\n")


def test_a_driver_that_cannot_be_loaded_is_not_usable(bare: Environment, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("not a library")
    done = run(bare, "-c", REPLACED, LD_LIBRARY_PATH=str(tmp_path))
    assert done.stdout == "True PatchingFinder\n"


@needs_triton
def test_with_a_gpu_triton_keeps_its_driver(fork: Environment) -> None:
    code = f"""
import runpy
runpy.run_path({str(LAUNCHER)!r})["main"](["-c", "import triton"], probe=lambda: True)
"""
    done = run(fork, "-c", code, launcher=False)
    assert "0 active drivers" in last_line(done)
    assert NOTE not in done.stderr


# The program


@pytest.mark.parametrize("kind", ["-m", "-c", "file", "package"])
def test_a_program_sees_what_python_would_show_it(
    bare: Environment, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").touch()
    # The launcher's folder holds a module of this name too; the program must not get that.
    (tmp_path / "pack/environment.py").touch()
    (tmp_path / "environment.py").touch()
    code = f"{ARGV}; import environment; print(environment.__file__)"
    (tmp_path / "shows.py").write_text(code)
    (tmp_path / "pack/__main__.py").write_text(code)
    words = {
        "-m": ["-m", "shows"],
        "package": ["-m", "pack"],
        "-c": ["-c", code],
        "file": ["./pack/__main__.py"],
    }[kind]
    monkeypatch.chdir(tmp_path)
    arguments = ["--arch", "sm_80", "-c", "x", "--", "-h", ""]
    plain = run(bare, *words, *arguments, launcher=False, PYTHONDONTWRITEBYTECODE="1")
    done = run(bare, *words, *arguments, PYTHONDONTWRITEBYTECODE="1")
    assert plain.returncode == 0, plain.stderr
    assert done.stdout == plain.stdout, done.stderr
    safe = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    plain = run(bare, *words, launcher=False, **safe)
    assert run(bare, *words, launcher=True, **safe).stdout == plain.stdout


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("import sys; sys.exit('words')", 1, "words"),
        ("raise KeyError('k')", 1, "KeyError: 'k'"),
        ("import sys; sys.exit(42)", 42, NOTE),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, NOTE),
    ],
)
def test_how_a_program_ends_passes_through(
    bare: Environment, tmp_path: Path, code: str, status: int, last: str
) -> None:
    (tmp_path / "ends.py").write_text(code)
    for words in (["-c", code], ["-m", "ends"], [str(tmp_path / "ends.py")]):
        done = run(bare, *words, PYTHONPATH=str(tmp_path))
        assert (done.returncode, last_line(done)) == (status, last)


def test_an_interrupt_reaches_the_program(bare: Environment) -> None:
    code = (
        "import os, signal, sys\ntry: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: sys.exit(8)"
    )
    assert run(bare, "-c", code).returncode == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to run"),
        (["-m"], "-m needs what to run"),
        (["--arch", "sm_1", "-c", ""], "unknown architecture 'sm_1'"),
        (["--arch"], "unknown architecture ''"),
        (["-q"], "unknown option -q"),
        (["absent.py"], "no such file: absent.py"),
    ],
)
def test_wrong_usage_is_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpuless.parse(words)
    assert ended.value.code == 2
    assert f"gpuless: {said}" in capsys.readouterr().err


def test_the_words_behind_the_program_are_its_own() -> None:
    gpu, program = gpuless.parse(["--arch=sm_80", "-m", "a.b", "--arch", "sm_90", "-c"])
    assert gpu.arch == "sm_80"
    assert program == gpuless.Program("-m", "a.b", ("--arch", "sm_90", "-c"))


def test_the_device_answers_what_is_known_and_nothing_else() -> None:
    shown = {a: (g.number, g.major, g.minor) for a, g in gpuless.GPUS.items()}
    assert shown["sm_90"] == (90, 9, 0)
    assert shown["sm_121"] == (121, 12, 1)
    driver: Any = gpuless.StubDriver(gpuless.GPUS["sm_90"])
    assert not hasattr(driver, "_initialize_obj")
    assert not hasattr(driver, "utils")
    with pytest.raises(RuntimeError, match=r"does not launch \(asked for: the driver's utils\)"):
        driver.utils  # noqa: B018
    with pytest.raises(gpuless.NoGpuError, match="the device's total_memory"):
        gpuless.GPUS["sm_90"].total_memory  # noqa: B018


# Who uses it (the compiler of an image too: tests/test_compiler.py)


@needs_triton
@needs_torch
def test_imports_of_the_fork_are_checked_through_it(fork: Environment) -> None:
    modules = ["triton", "triton_dist"]
    plain = list(check_imports(fork, modules, False, LAUNCHER))
    assert [(f.check, f.ok, f.code) for f in plain] == [
        ("import triton", False, 1),
        ("import triton_dist", False, 1),
    ]
    assert [f.symptom for f in plain] == [
        "0 active drivers",
        "either CUDA or HIP platform is supported",
    ]
    assert all("gpuless.py" in f.remedy for f in plain)
    assert [f.ok for f in check_imports(fork, modules, True, LAUNCHER)] == [True, True]


@needs_triton
def test_stock_triton_lacks_what_the_fork_has(stock: Environment) -> None:
    modules = ["triton", "triton._C.libtriton.distributed"]
    imported, missing = check_imports(stock, modules, True, LAUNCHER)
    assert imported.ok
    assert missing.symptom == "No module named triton._C.libtriton.distributed"
    assert "ModuleNotFoundError" in missing.detail
    assert missing.remedy


def test_what_went_wrong_is_told_without_the_stubs_own_words(bare: Environment) -> None:
    broken = {
        "leftover": "raise ImportError('something else')",
        "old": 'raise ImportError("/lib/libc.so.6: version `GLIBC_2.38\' not found")',
        "chained": "try: raise Exception('either CUDA or HIP platform is supported')\n"
        "except Exception as e: raise ImportError('see above') from e",
        "killed": "import os; os.kill(os.getpid(), 11)",
        "quits": "raise SystemExit(0)",
        "talks": "print('words')",
    }
    for name, text in broken.items():
        (bare.site / f"{name}.py").write_text(text)
    (bare.site / "triton").mkdir()  # what an uninstall can leave
    found = {
        f.check.removeprefix("import "): f
        for f in check_imports(bare, [*broken, "triton"], True, LAUNCHER)
    }
    assert [name for name, finding in found.items() if finding.ok] == ["talks"]
    assert found["leftover"].detail == "ImportError: something else"
    assert found["leftover"].remedy == "see docs/troubleshooting.md"
    assert found["old"].symptom == "GLIBC_2.38 not found"
    assert found["old"].detail.startswith("ImportError: /lib/libc.so.6")
    assert found["chained"].symptom == "either CUDA or HIP platform is supported"
    assert found["killed"].detail == "exit status -11"
    assert found["quits"].detail == "exit status 0"
    assert found["triton"].symptom == "module triton has no attribute jit"
