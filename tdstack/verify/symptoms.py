"""What users of a broken stack read at an import or at the start, why, and what mends it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Symptom:
    """One known failure. `pattern` is a regular expression that its message matches."""

    pattern: str
    symptom: str
    cause: str
    remedy: str


# A message can match more than one: the more specific row comes first.
SYMPTOMS = (
    Symptom(
        r"No module named '?triton\._C\.libtriton\.distributed"
        r"|cannot import name 'distributed' from 'triton\._C\.libtriton'",
        "No module named triton._C.libtriton.distributed",
        "stock Triton was installed over Triton-distributed's files, or it is the stock flavour",
        "install Triton-distributed last, under the name triton",
    ),
    Symptom(
        r"(?<!partially initialized )module '?triton'? has no attribute '?(jit|compile|language|"
        r"runtime|cdiv|Config|__version__)\b|cannot import name '\w+' from 'triton' \(unknown",
        "module triton has no attribute jit",
        "files left over from an uninstall keep triton as an empty package",
        "remove site-packages/triton and install Triton again",
    ),
    Symptom(
        r"No module named '?triton\.backends\.",
        "No module named triton.backends.amd",
        "the metadata of another Triton is left, and names a back end that this one lacks",
        "uninstall triton and triton_dist until none is left, then install one of them",
    ),
    Symptom(
        r"0 active drivers",
        "0 active drivers",
        "Triton-distributed asks for the GPU's driver when it is imported",
        "run it with a GPU (--gpus all); to compile or to check imports, through gpuless.py",
    ),
    Symptom(
        r"either CUDA or HIP platform is supported",
        "either CUDA or HIP platform is supported",
        "no program named nvidia-smi is on PATH",
        "NVIDIA_DRIVER_CAPABILITIES must include utility; without a GPU, through gpuless.py",
    ),
    Symptom(
        r"GLIBC_2\.\d+'? not found",
        "GLIBC_2.38 not found",
        "the wheel was built on a newer system than this one",
        "a base with glibc 2.38 or newer, or a wheel built for this one",
    ),
    Symptom(
        r"Failed to dlopen libnvshmem_host\.so|"
        r"libnvshmem_host\.so\.3: cannot open shared object file",
        "Failed to dlopen libnvshmem_host.so.3",
        "nvshmem4py 0.1 finds the library through LD_LIBRARY_PATH alone",
        "nvshmem4py 0.3, or LD_LIBRARY_PATH with the folder of the library",
    ),
    Symptom(
        r"No module named '?cuda\.bindings\.cynvvm|cannot import name '?bindings'? from '?cuda"
        r"|cannot import bindings",
        "No module named cuda.bindings.cynvvm",
        "cuda-core needs cuda-bindings 12.9.1 or newer",
        "install the pinned set of cuda-core, cuda-python and cuda-bindings",
    ),
    Symptom(
        r"(FileNotFoundError|No such file or directory): .*libnvshmem_device\.bc",
        "FileNotFoundError: libnvshmem_device.bc",
        "NVSHMEM 3.7 and newer have one such file for each architecture",
        "nvidia-nvshmem 3.6.5 or older",
    ),
    Symptom(
        r"device library version.*does not match.*host library",
        "device library version does not match host library",
        "two NVSHMEMs: one in use, another that the kernels were linked with",
        "exactly one NVSHMEM; make the cubins again",
    ),
    Symptom(
        r"No socket interface found",
        "No socket interface found",
        "NVSHMEM's bootstrap expects the interface eth0 and IPv4",
        "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME and NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY",
    ),
    Symptom(
        r"neither nv_peer_mem[, ]+n?or nvidia_peermem|Peer GPU not accessible",
        "Peer GPU not accessible",
        "GPUs cannot reach each other's memory, or the module for it is not loaded",
        "load nvidia_peermem; look at ACS and IOMMU",
    ),
    Symptom(
        r"cuMemMap.*fail|fail.*cuMemMap|multicast mapping failed|cuMulticast\w* failed",
        "cuMemMap failed, multicast mapping failed",
        "the NVLink fabric or its Fabric Manager is not well",
        "look at the Fabric Manager; NVSHMEM_DISABLE_NVLS=1 confirms it",
    ),
    Symptom(
        r"unsatisfied condition: (cuda|driver)",
        "unsatisfied condition: driver>=...",
        "the host's driver is older than the image asks for",
        "a newer driver, or an older CUDA line",
    ),
    Symptom(
        r"operation not permitted when stream is capturing",
        "operation not permitted when stream is capturing",
        "a kernel is loaded for the first time inside a capture",
        "run it once before capturing",
    ),
    Symptom(
        r"Unable to access device state\.? 13",
        "Unable to access device state. 13",
        "the kernels have no cubin for this GPU",
        "a supported GPU, or cubins made for this one",
    ),
    Symptom(
        r"/dev/shm.*(No space left|[Bb]us error)|(No space left|[Bb]us error).*/dev/shm",
        "No space left, or bus error, on /dev/shm",
        "/dev/shm has 64 MiB, Docker's default",
        "--ipc=host, or --shm-size",
    ),
    Symptom(
        r"sm_1(03|21)a?'? (is )?not defined",
        "ptxas: sm_103a, sm_121a not defined",
        "this ptxas is older than 12.9",
        "the CUDA 12.9 toolkit",
    ),
    Symptom(
        r"sm_1[02]\da?'? (is )?not defined",
        "sm_100a is not defined",
        "this ptxas is older than 12.8",
        "the CUDA 12.8 toolkit, or a newer one",
    ),
    Symptom(
        r"Triton only support CUDA 10\.0 or higher",
        "Triton only support CUDA 10.0 or higher, but got CUDA version: 13.0",
        "Triton 3.4 does not know the ptxas of CUDA 13",
        "TRITON_PTXAS_PATH must name a ptxas of CUDA 12",
    ),
)


def explain(text: str) -> Symptom | None:
    """Return the known failure that a message tells of, or None. Pure."""
    return next((s for s in SYMPTOMS if re.search(s.pattern, text)), None)
