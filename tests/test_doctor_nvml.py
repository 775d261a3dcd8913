"""What the doctor asks NVML and CUDA's library: whole hosts, broken ones, old libraries."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml
import pytest

from tdstack.doctor.facts import Facts
from tdstack.doctor.hardware import NvLink, Pair
from tdstack.doctor.load import dump, load
from tdstack.doctor.merge import merge
from tdstack.doctor.probes import libcuda
from tdstack.doctor.probes.nvml import look
from tdstack.doctor.probes.nvml_gpu import bus_id, health_of
from tdstack.doctor.probes.part import Part
from tests.fake_nvml import FakeGpu, FakeNvml


def facts(*parts: Part) -> Facts:
    return load(merge([({k: dump(v) for k, v in p.sections.items()}, p.why) for p in parts]))


def test_two_good_gpus_are_described_whole() -> None:
    nvml = FakeNvml([FakeGpu(), FakeGpu(bus=b"00000000:43:00.0")])
    found = facts(look(nvml))
    assert nvml.open == 0
    assert (found.driver.nvml, found.driver.library, found.driver.cuda) == (
        *("ok", "550.54.14", "12.4"),
    )
    assert found.driver.present is True
    assert found.gpus is not None
    first, second = found.gpus
    assert (first.pci, second.pci) == ("0000:1b:00.0", "0000:43:00.0")
    assert (first.name, first.capability, first.memory) == (
        *("NVIDIA H100 80GB HBM3", "9.0", 85520809984),
    )
    assert (first.ecc, first.ecc_uncorrected_volatile, first.ecc_uncorrected_aggregate) == (
        *(True, 10, 11),
    )
    assert (first.remap_corrected, first.remap_uncorrected) == (1, 2)
    assert (first.remap_pending, first.remap_failed) == (False, True)
    assert (first.clock_sm_max, first.clock_memory, first.power, first.power_max) == (
        *(1980, 2619, 69.123, 700.0),
    )
    assert (first.throttle, first.mig, first.mig_devices, first.processes) == (
        *(("gpu-idle",), False, 0, 0),
    )
    assert first.nvlinks is not None
    assert len(first.nvlinks) == 18
    # Version 6 of NVML is NVLink 4.0; replays, recoveries and CRC errors are 0 + 1 + 2.
    assert first.nvlinks[17] == NvLink(17, True, 4, "switch", "0000:c3:00.0", 3)
    assert (first.fabric_state, first.fabric_status, first.fabric_health) == (
        *("completed", "success", ()),
    )
    assert found.pairs is not None
    assert found.pairs[0] == Pair(0, 1, "ok", "ok", "ok", "ok", "system")
    assert [(pair.a, pair.b) for pair in found.pairs] == [(0, 1), (1, 0)]
    assert found.reason("gpus.retired_pending") == "function-not-found"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no-library"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not-loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "mismatch"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no-permission"),
        (pynvml.NVML_ERROR_UNKNOWN, "error"),
    ],
)
def test_a_driver_that_does_not_start_says_why(code: int, word: str) -> None:
    found = facts(look(FakeNvml([], start=code)))
    assert (found.driver.nvml, found.gpus) == (word, None)
    assert "NVML does not start" in found.reason("gpus.ecc")


def test_no_gpu_is_known_not_unknown() -> None:
    assert facts(look(FakeNvml([]))).gpus == ()


def test_a_lost_gpu_keeps_its_place_and_its_reason() -> None:
    lost = {1: pynvml.NVML_ERROR_GPU_IS_LOST}
    found = facts(look(FakeNvml([FakeGpu(), FakeGpu(), FakeGpu()], lost=lost)))
    assert found.gpus is not None
    assert [(gpu.index, gpu.error) for gpu in found.gpus] == [(0, ""), (1, "gpu-is-lost"), (2, "")]
    assert {(pair.a, pair.b) for pair in found.pairs or ()} == {(0, 2), (2, 0)}


def test_one_refused_answer_costs_that_fact_alone() -> None:
    gpu = FakeGpu(errors={"EccMode": 3, "NvLinkState": 999, "GpuFabricInfoV": 3}, links=0)
    gpu.errors["GpuFabricInfo"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    found = facts(look(FakeNvml([gpu])))
    assert found.gpus is not None
    assert (found.gpus[0].ecc, found.gpus[0].nvlinks) == (None, None)
    assert found.gpus[0].fabric_state is None
    assert found.gpus[0].memory == 85520809984
    assert found.reason("gpus.ecc") == "not-supported"
    assert found.reason("gpus.nvlinks") == "unknown"
    assert found.reason("gpus.fabric_state") == "not-supported"


def test_a_gpu_without_nvlink_has_none_not_unknown_ones() -> None:
    gpus = look(FakeNvml([FakeGpu(links=0), FakeGpu(errors={"NvLinkState": 3})]))
    assert [gpu.nvlinks for gpu in facts(gpus).gpus or ()] == [(), ()]


def test_a_switch_that_a_virtual_machine_does_not_see_has_no_address() -> None:
    found = facts(look(FakeNvml([FakeGpu(links=1, remote=b"FFFFFFFF:FF:FF.0")])))
    assert found.gpus is not None
    assert found.gpus[0].nvlinks == (NvLink(0, True, 4, "switch", None, 3),)


def test_pairs_keep_nvmls_reason() -> None:
    p2p = {(0, 1, 0): 1, (0, 1, 1): 4, (1, 0, 3): 5, (1, 0, 2): 77}
    found = facts(look(FakeNvml([FakeGpu(), FakeGpu()], p2p=p2p)))
    assert found.pairs is not None
    one, other = found.pairs
    assert (one.read, one.write) == ("chipset-not-supported", "disabled-by-regkey")
    assert (other.atomics, other.nvlink) == ("not-supported", None)


@pytest.mark.parametrize(
    ("lacking", "health"),
    [
        ({"c_nvmlGpuFabricInfo_v3_t"}, ("route-unhealthy",)),
        ({"c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t"}, None),
    ],
)
def test_an_older_pynvml_still_says_the_fabrics_state(
    lacking: set[str], health: tuple[str, ...] | None
) -> None:
    nvml = FakeNvml([FakeGpu(fabric=(1, 0, 1 << 4))], lacking=frozenset(lacking))
    found = facts(look(nvml))
    assert found.gpus is not None
    assert (found.gpus[0].fabric_state, found.gpus[0].fabric_health) == ("not-started", health)


def test_throttling_is_read_under_its_old_name_too() -> None:
    old = frozenset({"nvmlDeviceGetCurrentClocksEventReasons"})
    found = facts(look(FakeNvml([FakeGpu(reasons=0x48)], lacking=old)))
    assert found.gpus is not None
    assert found.gpus[0].throttle == ("hw-slowdown", "hw-thermal-slowdown")


def test_the_fabrics_health_is_read_by_its_bits() -> None:
    assert health_of(None) is None
    assert health_of(0b10_10_10_10 | 1 << 8) == ()  # every answer is "false" or "none"
    assert health_of(0b01 | 4 << 8) == ("degraded-bandwidth", "no-partition")


def test_addresses_are_written_as_the_kernel_writes_them() -> None:
    assert bus_id(b"00000000:1B:00.0") == "0000:1b:00.0"
    assert bus_id("00010001:05:00.0") == "0001:05:00.0"
    assert bus_id("0000:05:00.0") == "0000:05:00.0"
    assert bus_id(None) is None


class FakeCuda:
    """libcuda.so.1 of a host with GPUs that all have one answer to each attribute."""

    def __init__(self, count: int, attributes: dict[int, int], start: int = 0) -> None:
        self.count, self.attributes, self.start = count, attributes, start

    def cuInit(self, flags: int) -> int:  # noqa: N802 (CUDA's own names)
        assert flags == 0
        return self.start

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:  # noqa: N802
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out: Any, size: int, device: int) -> int:  # noqa: N802
        out.value = b"NVIDIA H20"
        return 0

    def cuDeviceGetPCIBusId(self, out: Any, size: int, device: int) -> int:  # noqa: N802
        out.value = b"0000:%02X:00.0" % (0x1B + device)
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:  # noqa: N802
        assert ctypes.sizeof(out._obj) == 8
        out._obj.value = 100 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:  # noqa: N802
        if attribute not in self.attributes:
            return 1
        out._obj.value = self.attributes[attribute]
        return 0

    def cuDeviceGetP2PAttribute(self, out: Any, kind: int, a: int, b: int) -> int:  # noqa: N802
        out._obj.value = int(kind == 2)
        return 0


def test_without_pynvml_cudas_library_describes_the_gpus() -> None:
    cuda = libcuda.look(FakeCuda(2, {75: 9, 76: 0, 132: 1, 124: 1}))
    missing = Part({}, {"gpus": "the Python package nvidia-ml-py is not installed"})
    found = facts(missing, cuda)
    assert found.gpus is not None
    assert [gpu.pci for gpu in found.gpus] == ["0000:1b:00.0", "0000:1c:00.0"]
    assert (found.gpus[0].name, found.gpus[0].capability) == ("NVIDIA H20", "9.0")
    assert (found.gpus[0].multicast, found.gpus[0].dma_buf) == (True, True)
    assert (found.driver.present, found.driver.cuda) == (True, "13.0")
    assert found.pairs is not None
    assert (found.pairs[0].read, found.pairs[0].atomics) == ("ok", "not-supported")
    assert "nvidia-ml-py" in found.reason("gpus.ecc")


def test_cudas_attributes_join_nvmls_gpus_by_their_address() -> None:
    nvml = look(FakeNvml([FakeGpu(bus=b"00000000:1C:00.0"), FakeGpu()]))
    found = facts(nvml, libcuda.look(FakeCuda(1, {132: 0})))
    assert found.gpus is not None
    assert [(gpu.index, gpu.pci, gpu.multicast) for gpu in found.gpus] == [
        (0, "0000:1c:00.0", None),
        (1, "0000:1b:00.0", False),
    ]
    assert found.driver.cuda == "12.4"


def test_a_cuda_library_that_does_not_start_or_load_is_a_reason() -> None:
    mismatch = facts(libcuda.look(FakeCuda(0, {}, start=803)))
    assert (mismatch.gpus, mismatch.reason("gpus.multicast")) == (None, "cuInit answers 803")

    def load_nothing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    part = libcuda.libcuda(None, load_nothing)  # type: ignore[arg-type]
    assert "cannot be loaded" in part.why["gpus.multicast"]
