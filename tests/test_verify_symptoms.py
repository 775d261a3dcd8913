"""The table of known failures: each row is found by what users read."""

from __future__ import annotations

import pytest

from tdstack.verify.symptoms import SYMPTOMS, Symptom, explain

NO_BINDINGS = "No module named cuda.bindings.cynvvm, cannot import bindings"
# As the programs print them, or nearly so.
MESSAGES = {
    "ModuleNotFoundError: No module named 'triton._C.libtriton.distributed'; "
    "'triton._C.libtriton' is not a package": "No module named triton._C.libtriton.distributed",
    "ImportError: cannot import name 'distributed' from 'triton._C.libtriton' "
    "(/opt/x/triton/_C/libtriton.so)": "No module named triton._C.libtriton.distributed",
    "AttributeError: module 'triton' has no attribute 'jit'": "module triton has no attribute jit",
    "ImportError: cannot import name 'jit' from 'triton' (unknown location)": (
        "module triton has no attribute jit"
    ),
    "ModuleNotFoundError: No module named 'triton.backends.amd'": (
        "No module named triton.backends.amd"
    ),
    "RuntimeError: 0 active drivers ([]). There should only be one.": "0 active drivers",
    "Exception: either CUDA or HIP platform is supported": (
        "either CUDA or HIP platform is supported"
    ),
    "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by "
    "/opt/x/triton/_C/libtriton.so)": "GLIBC_2.38 not found",
    "RuntimeError: Failed to dlopen libnvshmem_host.so.3": "Failed to dlopen libnvshmem_host.so.3",
    "ModuleNotFoundError: No module named 'cuda.bindings.cynvvm'": NO_BINDINGS,
    "ImportError: cannot import name 'bindings' from 'cuda' (unknown location)": NO_BINDINGS,
    "FileNotFoundError: [Errno 2] No such file or directory: '/opt/x/libnvshmem_device.bc'": (
        "FileNotFoundError: libnvshmem_device.bc"
    ),
    "ptxas fatal : Value 'sm_103a' is not defined for option 'gpu-name'": (
        "ptxas: sm_103a, sm_121a not defined"
    ),
    "ptxas fatal : Value 'sm_100a' is not defined for option 'gpu-name'": "sm_100a is not defined",
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8": (
        "unsatisfied condition: driver>=..."
    ),
    "neither nv_peer_mem, or nvidia_peermem detected. Skipping transport.": (
        "Peer GPU not accessible"
    ),
    "OSError: [Errno 28] No space left on device: '/dev/shm/nvshmem-1'": (
        "No space left, or bus error, on /dev/shm"
    ),
    "mem.cpp:12: NVSHMEM device library version 3.4 does not match the host library version 3.6": (
        "device library version does not match host library"
    ),
    "uid_bootstrap.cpp:30: No socket interface found": "No socket interface found",
    "cuMemMap failed: CUDA_ERROR_INVALID_VALUE": "cuMemMap failed, multicast mapping failed",
    "CUDA error: operation not permitted when stream is capturing": (
        "operation not permitted when stream is capturing"
    ),
    "init.cu:900: Unable to access device state. 13": "Unable to access device state. 13",
    "RuntimeError: Triton only support CUDA 10.0 or higher, but got CUDA version: 13.0": (
        "Triton only support CUDA 10.0 or higher, but got CUDA version: 13.0"
    ),
}


def test_every_row_has_a_message_here() -> None:
    assert set(MESSAGES.values()) == {symptom.symptom for symptom in SYMPTOMS}


@pytest.mark.parametrize(("message", "symptom"), MESSAGES.items())
def test_a_message_is_explained(message: str, symptom: str) -> None:
    found = explain(f"Traceback (most recent call last):\n  ...\n{message}\n")
    assert found is not None
    assert found.symptom == symptom


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda s: str(s.symptom))
def test_each_row_is_found_by_its_own_symptom(symptom: Symptom) -> None:
    assert explain(symptom.symptom) is symptom
    assert symptom.cause
    assert symptom.fix


@pytest.mark.parametrize(
    "message",
    [
        "",
        "ModuleNotFoundError: No module named 'numpy'",
        "ModuleNotFoundError: No module named 'triton'",
        "AttributeError: module 'torch' has no attribute 'jit'",
        "AttributeError: module 'triton' has no attribute 'jitter'",
        "AttributeError: partially initialized module 'triton' has no attribute 'jit' (most likely "
        "due to a circular import)",
        "ImportError: cannot import name 'x' from 'y' (unknown location)",
        "OSError: [Errno 28] No space left on device: '/var/cache'",
    ],
)
def test_what_is_not_known_is_not_guessed(message: str) -> None:
    assert explain(message) is None
