"""What is read from cubins: made ones, damaged ones, and real ones against NVIDIA's own tools."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from disassembly import accesses, probe, resource_usage
from hypothesis import given, settings
from hypothesis import strategies as st
from locked_tritons import IndexUnreachableError, folder_of, locked_versions
from made_cubins import Maker, attribute, parameter

from gemm_allreduce.dispatch import ARCHS
from gemm_allreduce.elf import cubin_sm, read_elf
from gemm_allreduce.resources import Kernel, Parameter, read_kernel
from gemm_allreduce.sass import count_accesses

# ------------------------------------------------------------------ made


def test_a_made_cubin_is_read() -> None:
    kernel = read_kernel(Maker().cubin())
    parameters = (Parameter(0, 8), Parameter(8, 4))
    assert kernel == Kernel(90, "k", 80, 16, 0, 128, parameters, bytes(32))


def test_memory_adds_up() -> None:
    local = {".nv.local.k": (1, bytes(24))}
    assert read_kernel(Maker(more=local).cubin()).local_bytes == 16 + 24
    assert read_kernel(Maker(shared=1024 + 600).cubin()).static_shared == 600
    # On sm_80 the section has only what is the kernel's own.
    assert read_kernel(Maker(shared=600, flags=0x500550).cubin()).static_shared == 600


def test_functions_that_no_host_launches_may_stand_beside_it() -> None:
    cubin = Maker(kernels=(("k", 0x10), ("trap", 0))).cubin()
    assert read_kernel(cubin).entry == "k"
    assert [f.entry for f in read_elf(cubin).functions] == [True, False]


OWN = Maker().own


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (Maker(kernels=()), "expected one kernel, found none"),
        (Maker(kernels=(("k", 0x10), ("l", 0x10))), "expected one kernel, found k, l"),
        (Maker(kernels=(("l", 0x10),)), "the code of l is missing: no section .text.l"),
        (Maker(general=b""), "says nothing of the registers or the stack frame of k"),
        (Maker(general=attribute(0x2F, struct.pack("<II", 7, 80))), "says nothing of the reg"),
        (Maker(general=attribute(0x2F, b"\1\0\0\0")), "attribute 0x2f of .nv.info at byte 0 rea"),
        (Maker(own=OWN[:-4]), "attribute 0x10 at byte 48 of .nv.info.k reaches beyond its end"),
        (Maker(own=b"\4\x37"), "an attribute of .nv.info.k at byte 0 reaches beyond the end"),
        (Maker(own=attribute(0x17, 0, form=9)), "unknown form 9 of the attribute at byte 0"),
        (Maker(own=parameter(0, 0, 8)), "says nothing of the size of the parameters"),
        (Maker(own=OWN + parameter(3, 12, 4)), r"describes parameters \[0, 1, 3\]"),
        (Maker(own=OWN + parameter(2, 8, 4)), "parameter 2 lies on top of another"),
        (Maker(own=OWN + parameter(2, 16, 8)), "parameters take 24 bytes, their block has 12"),
        (Maker(own=parameter(0, 0, 4) + attribute(0x19, 12, form=3)), "their block has 12"),
        (Maker(shared=100), "has 100 bytes, of which 1024 reserved"),
        (Maker(abi=9), "unknown ABI version 9"),
    ],
)
def test_what_is_wrong_is_said(maker: Maker, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_kernel(maker.cubin())


def test_a_section_beyond_the_end_is_said() -> None:
    cubin = bytearray(Maker().cubin())
    (table,) = struct.unpack_from("<Q", cubin, 40)
    code = table + 6 * 64  # behind none, names, symbols' names, symbols, and two of attributes
    (start,) = struct.unpack_from("<Q", cubin, code + 24)
    struct.pack_into("<Q", cubin, code + 32, len(cubin) - start + 1)
    with pytest.raises(ValueError, match=f"section 6 at byte {start} with .* beyond the end"):
        read_kernel(bytes(cubin))


def _survives(data: bytes) -> None:
    """Nothing but ValueError may come out, and only with words."""
    try:
        kernel = read_kernel(data)
        count_accesses(kernel.code, kernel.sm)
    except ValueError as error:
        assert len(str(error)) > 20 and "unpack" not in str(error)


def test_every_cut_is_refused() -> None:
    cubin = Maker().cubin()
    for length in range(len(cubin)):
        with pytest.raises(ValueError, match=r"cut off|not a 64-bit"):
            read_kernel(cubin[:length])


@settings(max_examples=600)
@given(st.data())
def test_damaged_bytes_never_end_in_a_traceback(data: st.DataObject) -> None:
    cubin = bytearray(Maker().cubin())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(cubin) - 1))
        cubin[place] = data.draw(st.integers(0, 255))
    _survives(bytes(cubin))


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_behind_a_header(tail: bytes) -> None:
    _survives(Maker().cubin()[:64] + tail)


@pytest.mark.parametrize("code", [b"", bytes(15), bytes(24)])
def test_half_an_instruction_is_refused(code: bytes) -> None:
    with pytest.raises(ValueError, match=f"code of {len(code)} bytes, expected a multiple of 16"):
        count_accesses(code, 90)


# ------------------------------------------------------------------ real ones


def _tools() -> list[Path]:
    """Folders with ptxas, nvdisasm and cuobjdump: those of the locked Tritons that can be had."""
    found = []
    for version in locked_versions():
        try:
            found.append(folder_of(version) / "triton/backends/nvidia/bin")
        except (IndexUnreachableError, RuntimeError):
            if os.environ.get("CI"):
                raise
    return found


def _assemble(ptxas: Path, arch: str, out: Path) -> Path | None:
    """Assemble the probe; None if this ptxas is too old for the architecture."""
    source, cubin = out / "probe.ptx", out / "probe.cubin"
    version = {"sm_100": "8.6", "sm_120": "8.7", "sm_103": "8.8", "sm_121": "8.8"}.get(arch, "8.4")
    source.write_text(probe(arch, version))
    command = [ptxas, f"--gpu-name={arch}", source, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    if "is not defined for option 'gpu-name'" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return cubin


@pytest.mark.parametrize("arch", ARCHS)
def test_readers_agree_with_the_tools_of_nvidia(arch: str, tmp_path: Path) -> None:
    folders = _tools()
    if not folders:
        pytest.skip("no Triton with nvdisasm can be had")
    read = 0
    for ptxas in sorted(path for folder in folders for path in folder.glob("ptxas*")):
        cubin = _assemble(ptxas, arch, tmp_path)
        if cubin is None:
            continue
        read += 1
        data = cubin.read_bytes()
        kernel = read_kernel(data)
        newest = folders[-1]
        counts = count_accesses(kernel.code, kernel.sm).counts
        assert dict(counts) == dict(accesses(newest / "nvdisasm", cubin)), ptxas
        assert {1, 4, 8, 16} <= {width for (kind, width) in counts if kind == "load"}
        assert {4, 8, 16} == {width for (kind, width) in counts if kind == "copy"}
        usage = resource_usage(newest / "cuobjdump", cubin)
        assert (kernel.registers, kernel.local_bytes) == (
            usage["REG"],
            usage["STACK"] + usage["LOCAL"],
        )
        assert kernel.local_bytes >= 256
        assert kernel.static_shared == 608
        assert usage["SHARED"] - kernel.static_shared in (0, 1024)
        assert f"sm_{cubin_sm(data)}" == f"sm_{kernel.sm}" == arch
        assert (kernel.entry, kernel.threads) == ("probe", 128)
        assert kernel.parameters == (Parameter(0, 8), Parameter(8, 4), Parameter(16, 8))
        assert f".text.{kernel.entry}" in read_elf(data).sections
    assert read, f"no ptxas here knows {arch}"
