"""Stand-ins for packages that SGLang imports and CPUs cannot have: CUDA kernels and compilers.

For tests only. A stand-in answers every attribute, so that a module which imports one loads; a
call of something that would compute is an error, so that no test passes on made-up numbers.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

CUDA_ONLY = ("deep_gemm", "flashinfer", "sgl_kernel", "torchvision", "tvm_ffi")
"""Top-level packages that only exist for CUDA, or want a torch of their own."""

FRONT_END = (
    "IPython",
    "PIL",
    "aiohttp",
    "compressed_tensors",
    "fastapi",
    "gguf",
    "partial_json_parser",
    "requests",
    "sentencepiece",
    "setproctitle",
    "starlette",
    "uvicorn",
)
"""Packages of the server's front end and of other checkpoint formats, which no layer uses."""


class Absent:
    """An attribute of a stand-in: decorators leave what they decorate, calls are errors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not kwargs:
            return args[0]
        if self._name.partition(".")[0] in FRONT_END:
            return Absent(f"{self._name}()")
        raise RuntimeError(f"{self._name} was called, which only exists on CUDA")

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()

    def __or__(self, _other: object) -> Any:
        return Any

    __ror__ = __or__


class _StandIn(ModuleType):
    __version__ = "0"  # libraries that ask find everything too old to be used

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in CUDA_ONLY + FRONT_END:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Make imports of both lists find stand-ins, here and in no other process."""
    sys.meta_path.insert(0, _Finder())
