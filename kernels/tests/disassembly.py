"""What NVIDIA's own tools say of a cubin, to compare with the readers; and code that has it all."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_KINDS = {
    "LDG": "load",
    "STG": "store",
    "LDGSTS": "copy",
    "LDL": "local",
    "STL": "local",
    "LD": "generic",
    "ST": "generic",
    "UTMALDG": "bulk load",
    "UTMASTG": "bulk",
    "UBLKCP": "bulk",
    "UBLKRED": "bulk",
}


def accesses(nvdisasm: Path, cubin: Path) -> Counter[tuple[str, int]]:
    """Count accesses by kind and width in bytes, from the mnemonics."""
    output = subprocess.run(
        [nvdisasm, "-c", cubin], check=True, capture_output=True, text=True
    ).stdout
    found: Counter[tuple[str, int]] = Counter()
    for mnemonic in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", output):
        name, *parts = mnemonic.split(".")
        if kind := _KINDS.get(name):
            width = next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)
            found[kind, 0 if kind.startswith("bulk") else width] += 1
    if not found:
        raise RuntimeError(f"nvdisasm prints no access to memory: {output[:500]}")
    return found


def resource_usage(cuobjdump: Path, cubin: Path) -> dict[str, int]:
    """Registers per thread, bytes of stack, local and shared memory."""
    output = subprocess.run(
        [cuobjdump, "-res-usage", cubin], check=True, capture_output=True, text=True
    ).stdout
    pairs = re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", output)
    usage = {name: int(value) for name, value in pairs}
    if set(usage) != {"REG", "STACK", "LOCAL", "SHARED"}:
        raise RuntimeError(f"cuobjdump prints no resource usage: {output}")
    return usage


_PROBE = """.version {version}
.target {arch}
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry probe(
 .param .u64 p, .param .u32 n, .param .u64 q
)
.reqntid 64, 2, 1
{{
 .reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .b16 %h<9>;
 .shared .align 4 .b8 fixed[608];
 .local .align 16 .b8 stack[256];
 ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; ld.param.u64 %rd2, [q];
 cvta.to.global.u64 %rd3, %rd1;
 mov.u32 %r2, %tid.x; mul.wide.u32 %rd4, %r2, 16; add.s64 %rd4, %rd3, %rd4;
{body}
 ret;
}}
"""


def probe(arch: str, version: str) -> str:
    """PTX with accesses of every kind and width that all architectures have. `version`: of PTX."""
    return _PROBE.format(arch=arch, version=version, body="\n".join(_body(arch)))


def _body(arch: str) -> Iterator[str]:
    # From one address for all threads and from one for each: the encodings differ.
    for place, base in enumerate(("%rd3", "%rd4")):
        offset = 65536 * place
        for kind, register in (("u8", "%h1"), ("u16", "%h1"), ("b32", "%r3"), ("b64", "%rd5")):
            for cache in ("", ".L1::evict_last"):
                offset += 256
                yield f" ld.global{cache}.{kind} {register}, [{base}+{offset}];"
                yield f" st.global{cache}.{kind} [{base}+{offset + 128}], {register};"
        for times in range(3):
            offset += 256
            yield f" ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [{base}+{offset}];"
            yield f" st.global.v4.b32 [{base}+{offset + 64}], {{%r3, %r4, %r5, %r6}};"
            if times:
                yield f" ld.global.v2.b32 {{%r3, %r4}}, [{base}+{offset + 128}];"
                yield f" st.global.v2.b32 [{base}+{offset + 192}], {{%r3, %r4}};"
        yield " mov.u32 %r7, dynamic;"
        for size in (4, 4, 4, 8, 8, 16):
            offset += 256
            yield f" cp.async.ca.shared.global [%r7+{offset % 2048}], [{base}+{offset}], {size};"
        yield f" cp.async.cg.shared.global [%r7], [{base}+{offset + 128}], 16, %r1;"
    yield " cp.async.wait_all; bar.sync 0; ld.shared.b32 %r3, [%r7+512]; mov.u32 %r8, fixed;"
    yield " st.shared.b32 [%r8+20], %r3; bar.sync 0; ld.shared.b32 %r4, [%r8+24];"
    yield " st.global.b32 [%rd4+99992], %r3; st.global.b32 [%rd4+99996], %r4;"
    yield " and.b32 %r5, %r1, 63; cvt.u64.u32 %rd5, %r5; mov.u64 %rd6, stack;"
    yield " cvta.to.local.u64 %rd6, %rd6; add.s64 %rd6, %rd6, %rd5;"
    for offset in range(0, 256, 16):
        yield f" st.local.v4.b32 [stack+{offset}], {{%r1, %r2, %r3, %r4}};"
    yield " st.local.b8 [%rd6], %r1; ld.local.u8 %h2, [%rd6+9]; ld.local.b32 %r6, [%rd6+16];"
    yield " st.global.b32 [%rd4+100000], %r6; st.global.b8 [%rd4+100004], %h2;"
    yield " ld.b32 %r3, [%rd2+8]; st.b32 [%rd2+16], %r3; atom.add.u32 %r3, [%rd2+24], %r1;"
    yield " st.v4.b32 [%rd2+48], {%r3, %r4, %r5, %r6};"
    if int(arch.removeprefix("sm_")) >= 90:
        yield " cp.async.bulk.global.shared::cta.bulk_group [%rd3+65536], [%r7], 1024;"
        yield " cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd3, {%r1, %r2}], [%r7];"
        yield " cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"
        yield " cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        yield "  [%r7], [%rd3, {%r1, %r2}], [%r7];"
