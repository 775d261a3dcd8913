"""gpuless: runs a Python program without a GPU as far as imports and compilation go.

``python gpuless.py [--arch sm_90] (-m MODULE | -c CODE | FILE) [ARGS...]``

Triton-distributed asks for a GPU as soon as it is imported, also by a program that only compiles.
Where this host has no usable GPU, a stub answers what is asked at import:

- Triton's active driver tells target and device; all that needs a GPU raises NoGpuError.
- An `nvidia-smi` is on PATH, last, unless there is one. It does nothing and fails.
- `torch.cuda` tells name, properties and capability of the device, and its number, 0.

All else stays as it is: `torch.cuda.is_available()` is False, CUDA's own libraries and NVML find
no device. Python programs that the program starts get `nvidia-smi` alone. One line on stderr says
that a stub is in use. Where a GPU can be used, the program runs as if this launcher were not there.

One file that imports nothing from beside it: images run it by its path.
Exit codes: the program's own; 2 usage.
"""

from __future__ import annotations

import atexit
import importlib.abc
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

NAME = "gpuless"
NOTE = f"{NAME}: no usable GPU here; a stub for {{}} stands in for it: programs compile, none runs"
REFUSAL = "no GPU: the GPU-less stub compiles, it does not launch"
USAGE = "usage: gpuless.py [--arch sm_90] (-m MODULE | -c CODE | FILE) [ARGS...]"
PROBE_LIMIT_S = 120
PROBE = """
import ctypes, sys
count = ctypes.c_int(0)
try:
    cuda = ctypes.CDLL("libcuda.so.1")
    usable = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
except (OSError, AttributeError):
    usable = False
sys.exit(0 if usable and count.value > 0 else 1)
"""
# 9 is what the real one answers where no driver is loaded.
NVIDIA_SMI = f"""#!/bin/sh
echo "nvidia-smi: {REFUSAL}" >&2
exit 9
"""

Patch = Callable[[Any], None]


class NoGpuError(RuntimeError, AttributeError):
    """The program asked for what only a GPU can answer.

    An AttributeError too: for `hasattr` and its like the stub does not have what it refuses.
    """

    def __init__(self, asked: str) -> None:
        super().__init__(f"{REFUSAL} (asked for: {asked})")


@dataclass(frozen=True)
class Gpu:
    """The device that the stub describes: that of a common card of its architecture."""

    arch: str
    multi_processor_count: int

    @property
    def number(self) -> int:
        """Return the architecture as Triton counts, such as 90."""
        return int(self.arch.removeprefix("sm_"))

    @property
    def major(self) -> int:
        """Return the first part of the compute capability."""
        return self.number // 10

    @property
    def minor(self) -> int:
        """Return the second part of the compute capability."""
        return self.number % 10

    @property
    def name(self) -> str:
        """Return the device's name; none of a real card, so that nobody tunes for it."""
        return f"NVIDIA GPU-less stub ({self.arch})"

    @property
    def warp_size(self) -> int:
        """Return the threads per warp."""
        return 32

    def __getattr__(self, name: str) -> Any:
        raise NoGpuError(f"the device's {name}")


GPUS: Mapping[str, Gpu] = {
    arch: Gpu(arch, processors)
    for arch, processors in {
        "sm_80": 108,  # A100
        "sm_86": 84,  # A40
        "sm_89": 142,  # L40S
        "sm_90": 132,  # H100 SXM
        "sm_100": 148,  # B200
        "sm_103": 148,  # B300
        "sm_120": 188,  # RTX PRO 6000
        "sm_121": 48,  # GB10
    }.items()
}
DEFAULT_ARCH = "sm_90"


class StubDriver:
    """Triton's active driver, as far as it can answer without a GPU.

    Raises: NoGpuError for any other attribute, such as a stream, a launcher or `utils`.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    @staticmethod
    def is_active() -> bool:
        """Return True: the driver is in use."""
        return True

    def get_current_target(self) -> Any:
        """Return the GPUTarget of the architecture."""
        # Not at the top: the module that makes this driver active is imported before this one.
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._gpu.number, self._gpu.warp_size)

    def get_current_device(self) -> int:
        """Return the number of the only device."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Return torch's name for the device; a tensor cannot be put there."""
        import torch

        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        """Return the module that torch handles the device with."""
        import torch

        return torch.cuda

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the C++ type of one of Triton's, as the NVIDIA driver says it."""
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(ty))

    def __getattr__(self, name: str) -> Any:
        raise NoGpuError(f"the driver's {name}")


class Stub:
    """What stands in for one GPU; says so on stderr when it first replaces something."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._said = False

    def activate(self) -> None:
        """Stand in from now on: in what is imported already, and in what will be."""
        patches: dict[str, Patch] = {
            "triton.runtime.driver": self._patch_triton,
            "torch": self._patch_torch,
        }
        for name, patch in patches.items():
            if name in sys.modules:  # a .pth file may have imported it
                patch(sys.modules[name])
        sys.meta_path.insert(0, PatchingFinder(patches))
        if shutil.which("nvidia-smi") is None:
            self._add_nvidia_smi()

    def _patch_triton(self, module: Any) -> None:
        module.driver.set_active(StubDriver(self._gpu))
        self._say()

    def _patch_torch(self, torch: Any) -> None:
        if not hasattr(torch, "cuda") or torch.cuda.is_available():
            return
        gpu = self._gpu
        torch.cuda.current_device = lambda: 0
        torch.cuda.get_device_name = lambda device=None: gpu.name
        torch.cuda.get_device_properties = lambda device=None: gpu
        torch.cuda.get_device_capability = lambda device=None: (gpu.major, gpu.minor)
        self._say()

    def _add_nvidia_smi(self) -> None:
        folder = tempfile.mkdtemp(prefix=f"{NAME}-")
        owner = os.getpid()

        def remove() -> None:
            if os.getpid() == owner:  # not in a process that the program forked
                shutil.rmtree(folder, ignore_errors=True)

        atexit.register(remove)
        program = Path(folder, "nvidia-smi")
        program.write_text(NVIDIA_SMI)
        program.chmod(0o755)
        Path(folder).chmod(0o755)
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), folder])
        self._say()

    def _say(self) -> None:
        if not self._said:
            self._said = True
            print(NOTE.format(self._gpu.arch), file=sys.stderr, flush=True)


class PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of `patches` as all other finders do, and patches each once it is run."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec with a loader that patches it, or None for any other."""
        if fullname not in self._patches:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:  # None: a namespace package, nothing to run
                    spec.loader = _PatchingLoader(spec.loader, self._patches[fullname])
                return spec
        return None


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, patch: Patch) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps no trace of this loader: others ask it for sources and data.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def has_gpu() -> bool:
    """Return whether CUDA's driver is here, starts, and has a device.

    Asked in a process of its own: CUDA cannot be used in children of a process that started it.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True  # a driver that is slow to start is there
    return done.returncode == 0


@dataclass(frozen=True)
class Program:
    """What to run, as python's own command line names it."""

    kind: Literal["-m", "-c", "file"]
    what: str
    arguments: tuple[str, ...]

    def run(self) -> None:
        """Run it as `__main__`, with python's own sys.argv and sys.path.

        Raises: whatever the program raises, SystemExit included.
        """
        sys.argv = ["-c" if self.kind == "-c" else self.what, *self.arguments]
        self._replace_own_folder()
        if self.kind == "-m":
            runpy.run_module(self.what, run_name="__main__", alter_sys=True)
        elif self.kind == "file":
            runpy.run_path(self.what, run_name="__main__")
        else:
            main_module = ModuleType("__main__")
            sys.modules["__main__"] = main_module
            exec(compile(self.what, "<string>", "exec"), main_module.__dict__)

    def _replace_own_folder(self) -> None:
        # Python put this file's folder first on the path, except with -P: its modules would hide
        # the program's.
        own = os.path.dirname(os.path.realpath(__file__))
        if sys.path and os.path.realpath(sys.path[0]) == own:
            file = os.path.dirname(os.path.realpath(self.what))
            sys.path[0] = {"-m": os.getcwd(), "-c": "", "file": file}[self.kind]


def parse(words: Sequence[str]) -> tuple[Gpu, Program]:
    """Return the GPU to stand in for, and the program with all words behind it.

    Raises: SystemExit 0 after `--help`, 2 after words that are not the usage.
    """
    arch, rest = DEFAULT_ARCH, list(words)
    if rest and rest[0] == "--arch":
        arch, rest = (rest[1] if len(rest) > 1 else ""), rest[2:]
    elif rest and rest[0].startswith("--arch="):
        arch, rest = rest[0].removeprefix("--arch="), rest[1:]
    if rest and rest[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
        sys.exit(0)
    if arch not in GPUS:
        _fail(f"unknown architecture {arch!r}; valid: {', '.join(GPUS)}")
    if rest and rest[0] in ("-m", "-c"):
        if len(rest) < 2:
            _fail(f"{rest[0]} needs what to run")
        kind: Literal["-m", "-c"] = "-m" if rest[0] == "-m" else "-c"
        return GPUS[arch], Program(kind, rest[1], tuple(rest[2:]))
    if not rest or rest[0].startswith("-"):
        _fail(f"unknown option {rest[0]}" if rest else "nothing to run")
    if not os.path.exists(rest[0]):
        _fail(f"no such file: {rest[0]}")
    return GPUS[arch], Program("file", rest[0], tuple(rest[1:]))


def _fail(message: str) -> None:
    print(f"{NAME}: {message}\n{USAGE}", file=sys.stderr)
    sys.exit(2)


def main(words: Sequence[str] | None = None, probe: Callable[[], bool] = has_gpu) -> None:
    """Run the program of the command line, with the stub unless `probe` finds a GPU.

    Raises: whatever the program raises; SystemExit 2 for wrong usage.
    """
    gpu, program = parse(sys.argv[1:] if words is None else words)
    if not probe():
        Stub(gpu).activate()
    program.run()


if __name__ == "__main__":
    main()
