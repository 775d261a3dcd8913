"""The loader, with a driver that writes down what it is asked for. No GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_bundles import BULK, LARGE, SMALL, write_bundle

torch = pytest.importorskip("torch")

from gemm_allreduce import loader
from gemm_allreduce.arguments import ARGUMENTS, INTEGERS, POINTERS
from gemm_allreduce.bundle import (
    CubinError,
    CubinIntegrityError,
    MissingCubinError,
    read_bundle,
)
from gemm_allreduce.launch import Grid, Operands, Ranks, integers_of, pointers_of
from gemm_allreduce.layout import DESCRIPTOR_BYTES, MOST_CTAS, STATUS_WORDS, HeapLayout
from gemm_allreduce.loader import CubinKernels

STREAM = 77


class Driver:
    """What the loader uses of CUDA: writes down what it is asked for, reads arguments as CUDA."""

    class CUlaunchConfig(SimpleNamespace):
        """Settings of a launch."""

    class CUlaunchAttribute:
        """One attribute."""

        def __init__(self) -> None:
            self.value = SimpleNamespace()

    CUlaunchAttributeID = SimpleNamespace(
        CU_LAUNCH_ATTRIBUTE_COOPERATIVE="cooperative",
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="early",
    )
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared memory"
    )

    def __init__(self, scratch: int = 1) -> None:
        self.scratch = scratch
        self.loads: list[str] = []
        self.attributes: list[tuple[Any, ...]] = []
        self.launches: list[tuple[Any, str, list[int]]] = []
        self.status = 0
        self.occupancy = 1
        self.failure: Exception | None = None

    def from_cubin(self, data: bytes, *, name: str) -> Any:
        assert data.startswith(b"\x7fELF")
        if self.failure:
            raise self.failure
        time.sleep(0.01)  # long enough for another thread to come
        self.loads.append(name)
        return SimpleNamespace(
            get_kernel=lambda entry: SimpleNamespace(handle=f"kernel {entry} of {name}")
        )

    def cuDeviceGet(self, ordinal: int) -> tuple[int, str]:  # noqa: N802 - CUDA's name
        return 0, f"device {ordinal}"

    def cuKernelSetAttribute(self, *arguments: Any) -> tuple[int]:  # noqa: N802
        self.attributes.append(arguments)
        return (0,)

    def cuKernelGetFunction(self, kernel: str) -> tuple[int, str]:  # noqa: N802
        return 0, kernel.replace("kernel", "function")

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(  # noqa: N802
        self, function: str, threads: int, shared: int
    ) -> tuple[int, int]:
        return 0, self.occupancy

    def cuLaunchKernelEx(  # noqa: N802
        self, configuration: Any, function: str, parameters: int, extra: int
    ) -> tuple[int]:
        time.sleep(0.0005)  # the real one lets other threads run before it copies
        sizes = [8] * len(POINTERS) + [4] * len(INTEGERS) + [8] * self.scratch
        places = (ctypes.c_void_p * len(sizes)).from_address(parameters)
        values = []
        for place, size in zip(places, sizes, strict=True):
            assert place % size == 0, "misaligned"
            values.append(int.from_bytes(ctypes.string_at(place, size), "little", signed=True))
        self.launches.append((configuration, function, values))
        return (self.status,)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"words of the driver"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(loader, "_cuda", lambda: (made, made))
    monkeypatch.setattr(loader, "_loaded", {})
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: STREAM, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def kernels_of(folder: Path, **options: Any) -> CubinKernels:
    settings = {"arch": "sm_90", "device": 3, "fallback": None} | options
    return CubinKernels(read_bundle(folder), **settings)


def ranks_of(world_size: int, rank: int = 0, *, virtual: bool = False) -> Ranks:
    layout = HeapLayout(world_size, 64, 64)
    table = torch.zeros(world_size, dtype=torch.int64)
    status = torch.zeros(world_size, STATUS_WORDS, dtype=torch.int32)
    scratch = torch.zeros(MOST_CTAS * DESCRIPTOR_BYTES // 4, dtype=torch.int32)
    return Ranks(layout, table, status, scratch, rank, virtual)


def operands_of(tokens: int = 5, **extras: Any) -> Operands:
    x = torch.zeros(tokens, 32, dtype=torch.float16)
    weight = torch.zeros(64, 32, dtype=torch.float16)
    return Operands(x, weight, torch.zeros(tokens, 64, dtype=torch.float16), **extras)


def test_a_launch_gives_what_the_kernel_takes(driver: Driver, tmp_path: Path) -> None:
    kernels = kernels_of(write_bundle(tmp_path))
    ranks, operands = ranks_of(2, rank=1), operands_of()
    grid = Grid(7, 5, 2)
    kernels.launch(LARGE, ranks, operands, grid, 99)
    ((configuration, function, values),) = driver.launches
    assert function == f"function gemm_allreduce_two_shot of {LARGE.name}"
    given = dict(zip(ARGUMENTS, values, strict=False))
    assert values[len(ARGUMENTS) :] == [0]
    assert given["x_ptr"] == operands.x.data_ptr()
    assert given["bias_ptr"] == operands.y.data_ptr()
    assert given["heap_table"] == ranks.table.data_ptr()
    numbers = {"M": 5, "n_vectors": 8, "k_vectors": 4, "rank": 1, "gemm_ctas": 5, "copy_first": 2}
    assert {name: given[name] for name in numbers} == numbers
    assert given["spin_limit"] == 99
    assert (configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ) == (1, 7, 1)
    assert (configuration.blockDimX, configuration.blockDimY) == (256, 1)
    assert configuration.sharedMemBytes == 65536
    assert configuration.hStream == STREAM
    assert configuration.numAttrs == 1
    assert configuration.attrs[0].id == "cooperative"
    assert configuration.attrs[0].value.cooperative == 1
    handle = f"kernel gemm_allreduce_two_shot of {LARGE.name}"
    assert driver.attributes == [("shared memory", 65536, handle, "device 3")]


def test_an_early_kernel_may_start_before_the_one_before_it_has_ended(
    driver: Driver, tmp_path: Path
) -> None:
    early = dataclasses.replace(LARGE, early=512)
    kernels = kernels_of(write_bundle(tmp_path, variants=(LARGE, early)))
    for variant in (early, LARGE):
        kernels.launch(variant, ranks_of(2), operands_of(), Grid(7, 7, 0), 1)
    (first, _, _), (second, _, _) = driver.launches
    assert [attribute.id for attribute in first.attrs] == ["cooperative", "early"]
    assert first.numAttrs == 2
    assert first.attrs[1].value.programmaticStreamSerializationAllowed == 1
    assert [attribute.id for attribute in second.attrs] == ["cooperative"]


def test_virtual_ranks_are_the_first_dimension_of_the_grid(driver: Driver, tmp_path: Path) -> None:
    kernels = kernels_of(write_bundle(tmp_path))
    kernels.launch(LARGE, ranks_of(2, virtual=True), operands_of(), Grid(7, 7, 0), 1)
    configuration = driver.launches[0][0]
    assert (configuration.gridDimX, configuration.gridDimY) == (2, 7)


@pytest.mark.parametrize("scratch", [0, 1, 2])
def test_as_many_null_pointers_follow_as_the_compiler_expects(
    scratch: int, driver: Driver, tmp_path: Path
) -> None:
    driver.scratch = scratch
    kernels = kernels_of(write_bundle(tmp_path, scratch=scratch))
    for tokens in (1, 2):
        kernels.launch(SMALL, ranks_of(1), operands_of(tokens), Grid(1, 1, 0), 2**31 - 1)
    for launch, tokens in zip(driver.launches, (1, 2), strict=True):
        values = launch[2]
        assert values[len(ARGUMENTS) :] == [0] * scratch
        assert values[len(POINTERS)] == tokens
        assert values[list(ARGUMENTS).index("spin_limit")] == 2**31 - 1


@pytest.mark.parametrize("scratch", [0, 1, 2])
def test_bulk_copies_get_memory_for_their_descriptors(
    scratch: int, driver: Driver, tmp_path: Path
) -> None:
    """The first of the compiler's own pointers; each workspace its own, for other kernels null."""
    driver.scratch = scratch
    folder = write_bundle(tmp_path, variants=(BULK, LARGE), scratch=scratch)
    for _ in range(2):
        kernels, ranks = kernels_of(folder), ranks_of(1)
        kernels.launch(BULK, ranks, operands_of(), Grid(1, 1, 0), 1)
        kernels.launch(LARGE, ranks_of(2), operands_of(), Grid(1, 1, 0), 1)
        bulk, plain = (launch[2][len(ARGUMENTS) :] for launch in driver.launches[-2:])
        assert bulk == [ranks.scratch.data_ptr(), 0][:scratch]
        assert plain == [0] * scratch


def test_every_operand_has_its_place(driver: Driver, tmp_path: Path) -> None:
    extras = {
        "bias": torch.zeros(64, dtype=torch.float16),
        "residual": torch.zeros(5, 64, dtype=torch.float16),
        "x_scale": torch.ones(5),
        "weight_scale": torch.ones(64),
    }
    ranks, operands = ranks_of(1), operands_of(**extras)
    kernels_of(write_bundle(tmp_path)).launch(SMALL, ranks, operands, Grid(1, 1, 0), 1)
    given = dict(zip(ARGUMENTS, driver.launches[0][2], strict=False))
    for name, tensor in extras.items():
        assert given[f"{name}_ptr"] == tensor.data_ptr()
    assert given["extras"] == 3
    assert given["status_ptr"] == ranks.status.data_ptr()
    assert len(pointers_of(ranks, operands)) == len(POINTERS)
    assert len(integers_of(ranks, operands, Grid(1, 1, 0), 1)) == len(INTEGERS)


def in_threads(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run `work` in threads that start together; return what they raised."""
    start, raised = threading.Barrier(count), []

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_a_cubin_is_loaded_once_whoever_asks(driver: Driver, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    all_kernels = [kernels_of(folder) for _ in range(4)]

    def launch(number: int) -> None:
        kernels = all_kernels[number % len(all_kernels)]
        for _ in range(20):
            kernels.launch(SMALL, ranks_of(1), operands_of(number + 1), Grid(1, 1, 0), number)

    assert in_threads(12, launch) == []
    assert driver.loads == [SMALL.name]
    spin_limit = list(ARGUMENTS).index("spin_limit")
    seen = Counter((v[len(POINTERS)], v[spin_limit]) for *_, v in driver.launches)
    assert seen == {(number + 1, number): 20 for number in range(12)}, "calls were mixed up"


def test_preparing_loads_and_says_so(driver: Driver, tmp_path: Path) -> None:
    kernels = kernels_of(write_bundle(tmp_path))
    assert kernels.prepare(SMALL, ranks_of(1))
    assert not kernels.prepare(SMALL, ranks_of(1))
    assert (driver.loads, driver.launches) == ([SMALL.name], [])


def test_nothing_is_loaded_inside_a_capture(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = kernels_of(write_bundle(tmp_path))
    kernels.prepare(SMALL, ranks_of(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernels.launch(SMALL, ranks_of(1), operands_of(), Grid(1, 1, 0), 1)
    with pytest.raises(RuntimeError, match=r"is not loaded, .* call workspace\.warmup"):
        kernels.launch(LARGE, ranks_of(2), operands_of(), Grid(1, 1, 0), 1)
    assert driver.loads == [SMALL.name]


def test_a_changed_cubin_is_not_loaded(driver: Driver, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    path = folder / "sm_90" / f"{SMALL.name}.cubin"
    path.write_bytes(path.read_bytes() + b"\0")
    kernels = kernels_of(folder, fallback=Fallback())
    for attempt in (
        lambda: kernels.prepare(SMALL, ranks_of(1)),
        lambda: kernels.launch(SMALL, ranks_of(1), operands_of(), Grid(1, 1, 0), 1),
    ):
        with pytest.raises(CubinIntegrityError, match="was changed"):
            attempt()
    assert (driver.loads, driver.launches) == ([], [])


class Fallback:
    """Stands for Triton."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prepare(self, variant: Any, ranks: Ranks) -> bool:
        self.asked.append(f"prepare {variant.name}")
        return True

    def launch(self, variant: Any, *arguments: Any) -> None:
        self.asked.append(f"launch {variant.name}")


def test_a_lacking_variant_is_compiled_with_one_line(
    driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fallback = Fallback()
    kernels = kernels_of(write_bundle(tmp_path, variants=[LARGE]), fallback=fallback)
    with caplog.at_level(logging.WARNING, "gemm_allreduce"):
        kernels.prepare(SMALL, ranks_of(1))
        for _ in range(2):
            kernels.launch(SMALL, ranks_of(1), operands_of(), Grid(1, 1, 0), 1)
    assert fallback.asked == [f"prepare {SMALL.name}", *[f"launch {SMALL.name}"] * 2]
    (line,) = caplog.messages
    assert line.endswith(f"has no {SMALL.name} for sm_90")


def test_a_lacking_variant_is_refused_where_nothing_may_compile(
    driver: Driver, tmp_path: Path
) -> None:
    kernels = kernels_of(write_bundle(tmp_path, variants=[LARGE]))
    with pytest.raises(MissingCubinError, match=f"has no {SMALL.name} for sm_90, and compiling"):
        kernels.launch(SMALL, ranks_of(1), operands_of(), Grid(1, 1, 0), 1)


def test_what_the_driver_refuses_is_told(driver: Driver, tmp_path: Path) -> None:
    kernels = kernels_of(write_bundle(tmp_path))
    driver.failure = RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
    with pytest.raises(CubinError, match=r"does not load .*: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        kernels.prepare(SMALL, ranks_of(1))
    driver.failure, driver.occupancy = None, 0
    with pytest.raises(CubinError, match="does not fit on a multiprocessor"):
        kernels.prepare(SMALL, ranks_of(1))
    driver.occupancy, driver.status = 1, 720
    with pytest.raises(CubinError, match=r"grid of \(1, 9\) was not launched: 720: words of the"):
        kernels.launch(SMALL, ranks_of(1), operands_of(), Grid(9, 9, 0), 1)
