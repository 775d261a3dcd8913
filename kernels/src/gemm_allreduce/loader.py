"""Kernels that were compiled ahead of time: loaded through cuda-core, launched through the driver.

Imports neither Triton nor a compiler. A cubin is read, its hash compared and loaded once per
process and device.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .arguments import INTEGERS, POINTERS
from .bundle import Bundle, CubinError, MissingCubinError, Record
from .launch import (
    Grid,
    Operands,
    Ranks,
    integers_of,
    launch_grid,
    pointers_of,
    require_runnable,
)
from .variants import WARP, Variant

if TYPE_CHECKING:
    from .jit import JitKernels

_LOG: Final = logging.getLogger(__package__)
_CONFIGURATIONS: Final = 1024
"""Launch configurations of a kernel that are kept."""


@dataclass(frozen=True)
class Loaded:
    """A kernel in a device's context. ``code`` keeps it there."""

    function: Any
    record: Record
    code: Any


_loaded: dict[tuple[Path, int], Loaded] = {}
_loading = threading.Lock()


class CubinKernels:
    """The kernels of a bundle on one device.

    Args:
        bundle: compiled from the sources of this package.
        arch: of the device.
        device: its ordinal; current wherever a method is called.
        fallback: compiles variants that the bundle lacks; None refuses them.

    Raises:
        MissingCubinError: cuda-core or its bindings are missing.
    """

    def __init__(self, bundle: Bundle, arch: str, device: int, fallback: JitKernels | None) -> None:
        self._driver, self._object_code = _cuda()
        self._bundle, self._arch, self._device = bundle, arch, device
        self._fallback = fallback
        self._kernels: dict[Variant, _Ready] = {}
        self._lacking: set[Variant] = set()

    @property
    def identity(self) -> str:
        """Return what must be the same on all ranks."""
        return f"cubins {self._bundle.digest[:12]}"

    def describe(self) -> str:
        """Return one sentence on where the kernels come from."""
        cuda = f" of CUDA {self._bundle.cuda}" if self._bundle.cuda else ""
        return (
            f"cubins{cuda} for {self._arch}, compiled ahead of time by Triton "
            f"{self._bundle.triton}, from {self._bundle.folder}"
        )

    def serves(self, variant: Variant) -> bool:
        """Return whether there is a cubin for the variant, or it can be compiled."""
        if (self._arch, variant.name) in self._bundle.records:
            return not variant.multimem
        return self._fallback is not None and self._fallback.serves(variant)

    def prepare(self, variant: Variant, ranks: Ranks) -> bool:
        """Load a kernel; return whether there was something to do.

        Raises: as `launch`.
        """
        if variant in self._kernels:
            return False
        loaded = self._load(variant, ranks)
        return loaded is not None or self._require_fallback(variant).prepare(variant, ranks)

    def launch(
        self, variant: Variant, ranks: Ranks, operands: Operands, grid: Grid, spin_limit: int
    ) -> None:
        """Launch on the current stream without waiting for it. Checks no shapes.

        Raises:
            MissingCubinError: the bundle lacks the variant, and nothing may compile it.
            CubinIntegrityError: the cubin's bytes are not the manifest's.
            CubinError: the driver refuses it.
            RuntimeError: a multimem variant, or a first load inside a capture.
        """
        kernel = self._kernels.get(variant) or self._load(variant, ranks)
        if kernel is None:
            fallback = self._require_fallback(variant)
            fallback.launch(variant, ranks, operands, grid, spin_limit)
            return
        import torch

        # The call that Triton's own launcher makes: no object is made for the stream.
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        key = (*launch_grid(ranks, grid), stream)
        configuration = kernel.configurations.get(key)
        if configuration is None:
            configuration = self._configure(kernel, key)
        addresses = [tensor.data_ptr() for tensor in pointers_of(ranks, operands)]
        numbers = integers_of(ranks, operands, grid, spin_limit)
        with kernel.lock:
            kernel.arguments.write(addresses, numbers)
            (status,) = self._driver.cuLaunchKernelEx(
                configuration, kernel.loaded.function, kernel.arguments.address, 0
            )
        if status:
            what = f"{kernel.loaded.record.name} with a grid of {key[:2]} was not launched"
            self._refuse(status, what)

    def _require_fallback(self, variant: Variant) -> JitKernels:
        if self._fallback is None:
            raise MissingCubinError(
                f"{_lack(self._bundle, variant, self._arch)}, and compiling at run time is "
                "switched off or Triton is not installed"
            )
        if variant not in self._lacking:
            self._lacking.add(variant)
            reason = _lack(self._bundle, variant, self._arch)
            _LOG.warning("gemm_allreduce compiles a kernel at run time: %s", reason)
        return self._fallback

    def _load(self, variant: Variant, ranks: Ranks) -> _Ready | None:
        """Return the kernel of a variant, loading it if need be; None if the bundle lacks it."""
        require_runnable(variant)
        if (self._arch, variant.name) not in self._bundle.records:
            return None
        record = self._bundle.record(variant.name, self._arch)
        with _loading:
            place = self._bundle.folder / record.file
            loaded = _loaded.get((place, self._device))
            if loaded is None:
                _refuse_capture(record)
                loaded = self._load_record(record)
                _loaded[place, self._device] = loaded
        scratch = ranks.scratch.data_ptr() if variant.tile.bulk else 0
        ready = _Ready(loaded, _Arguments(record.scratch, scratch), variant.early > 0)
        return self._kernels.setdefault(variant, ready)

    def _load_record(self, record: Record) -> Loaded:
        data = self._bundle.read(record)
        driver, what = self._driver, f"{record.name} for {record.arch}"
        try:
            code = self._object_code.from_cubin(data, name=record.name)
            kernel = code.get_kernel(record.entry)
        except Exception as error:  # cuda-core's own, which have no common base across versions
            raise CubinError(f"the driver does not load {what}: {error}") from error
        attribute = driver.CUfunction_attribute
        device = self._ask(driver.cuDeviceGet(self._device), what)
        self._ask(
            driver.cuKernelSetAttribute(
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                record.shared,
                kernel.handle,
                device,
            ),
            f"{what} with {record.shared} bytes of shared memory",
        )
        function = self._ask(driver.cuKernelGetFunction(kernel.handle), what)
        # Under CUDA_MODULE_LOADING=LAZY, the default, code reaches the device only now.
        occupancy = self._ask(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                function, record.num_warps * WARP, record.shared
            ),
            what,
        )
        if not occupancy:
            raise CubinError(f"{what} does not fit on a multiprocessor of this device")
        return Loaded(function, record, code)

    def _configure(self, kernel: _Ready, key: tuple[int, int, int]) -> Any:
        driver, record = self._driver, kernel.loaded.record
        configuration = driver.CUlaunchConfig()
        configuration.gridDimX, configuration.gridDimY, configuration.hStream = key
        configuration.gridDimZ = 1
        configuration.blockDimX = record.num_warps * WARP
        configuration.blockDimY = configuration.blockDimZ = 1
        configuration.sharedMemBytes = record.shared
        attributes, names = [], driver.CUlaunchAttributeID
        if record.cooperative:
            cooperative = driver.CUlaunchAttribute()
            cooperative.id = names.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            cooperative.value.cooperative = 1
            attributes.append(cooperative)
        if kernel.early:
            early = driver.CUlaunchAttribute()
            early.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            early.value.programmaticStreamSerializationAllowed = 1
            attributes.append(early)
        if attributes:
            configuration.attrs = attributes
            configuration.numAttrs = len(attributes)
        if len(kernel.configurations) >= _CONFIGURATIONS:
            kernel.configurations.clear()
        kernel.configurations[key] = configuration
        return configuration

    def _ask(self, answer: tuple[Any, ...], what: str) -> Any:
        status, *values = answer
        if status:
            self._refuse(status, what)
        return values[0] if values else None

    def _refuse(self, status: Any, what: str) -> None:
        _, text = self._driver.cuGetErrorString(status)
        words = text.decode() if isinstance(text, bytes) else text
        raise CubinError(f"{what}: {getattr(status, 'name', status)}: {words}")


class _Arguments:
    """Memory for the arguments of a launch, as the driver reads them: an array of addresses."""

    def __init__(self, parameters: int, scratch: int) -> None:
        """`parameters` are Triton's own, the last ones; the first is the address of scratch."""
        self._layout = struct.Struct(f"@{len(POINTERS)}Q{len(INTEGERS)}i0Q{parameters}Q")
        self._own = (scratch, *(0,) * parameters)[:parameters]
        self._values = ctypes.create_string_buffer(self._layout.size + 8)
        first = -(-ctypes.addressof(self._values) // 8) * 8
        self._offset = first - ctypes.addressof(self._values)
        kinds = [8] * len(POINTERS) + [4] * len(INTEGERS) + [8] * parameters
        places, place = [], 0
        for size in kinds:
            place = -(-place // size) * size
            places.append(first + place)
            place += size
        self._places = (ctypes.c_void_p * len(places))(*places)
        self.address = ctypes.addressof(self._places)

    def write(self, addresses: list[int], numbers: tuple[int, ...]) -> None:
        """Replace all values."""
        self._layout.pack_into(self._values, self._offset, *addresses, *numbers, *self._own)


@dataclass(frozen=True)
class _Ready:
    """A kernel of one workspace; ``early``: see Variant.

    The driver copies ``arguments`` within a launch; ``lock`` keeps others from them until then.
    ``configurations`` are by ranks in the launch, CTAs of each, and stream.
    """

    loaded: Loaded
    arguments: _Arguments
    early: bool
    configurations: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _lack(bundle: Bundle, variant: Variant, arch: str) -> str:
    return f"{bundle.folder} has no {variant.name} for {arch}"


def _refuse_capture(record: Record) -> None:
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{record.name} is not loaded, and nothing can be loaded while a CUDA graph is "
            "captured: call workspace.warmup, or make a call, before the capture"
        )


def _cuda() -> tuple[Any, Any]:
    """Return the driver's bindings and cuda-core's class of loaded code."""
    try:
        from cuda.bindings import driver
        from cuda.core import ObjectCode
    except ImportError as error:
        raise MissingCubinError(
            f"cubins are loaded through cuda-core, which cannot be imported: {error}; install "
            "gemm-allreduce[cu12] or gemm-allreduce[cu13], as the driver's CUDA version is"
        ) from error
    return driver, ObjectCode


def driver_version() -> int:
    """Return the CUDA version of the driver as major * 1000 + minor * 10.

    Raises: MissingCubinError without the bindings; CubinError when the driver does not answer.
    """
    driver, _ = _cuda()
    status, version = driver.cuDriverGetVersion()
    if status:
        raise CubinError(f"the CUDA driver does not tell its version: {status}")
    return int(version)
