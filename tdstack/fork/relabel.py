"""A Triton-distributed wheel becomes distribution `triton`, and `triton-dist` an alias of it.

Under the name `triton` with a local version it satisfies torch's pin (PEP 440: `==3.4.0` ignores
a local label), so no later install puts stock Triton over it. Tools that look for `triton-dist`
find the alias, whose one requirement makes `pip check` complain as soon as the fork is gone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from tdstack.fork.facts import WheelFacts
from tdstack.fork.inspection import of_the_builder
from tdstack.fork.zipcopy import WheelWriter, info_folder, recorded_digests
from tdstack.verify.triton.fork import LABEL


def label_of(facts: WheelFacts) -> str:
    """Return the version under which a wheel is installed: 3.4.0+dist.<sha8>.

    sha8 begins the sha256 of the wheel as it was built. A labelled wheel keeps its label.
    """
    if is_labelled(facts):
        return facts.version
    # Through Version, because PEP 440 drops leading zeros of a label that is all digits.
    return str(Version(f"{facts.base_version}{LABEL}{facts.sha256[:8]}"))


def is_labelled(facts: WheelFacts) -> bool:
    """Return whether this toolkit has relabelled the wheel already."""
    return facts.labelled


def provenance_of(facts: WheelFacts, commit: str = "") -> dict[str, str]:
    """Return where a wheel comes from: file name, sha256, size in bytes, and commit if known.

    `lacks` are modules that its own code imports and that it does not have, `left-out`
    requirements that are not carried over.
    """
    if is_labelled(facts):
        return facts.provenance
    told = {"file": facts.file, "sha256": facts.sha256, "size": str(facts.size)}
    local = facts.version.partition("+git")[2]
    if commit or local:
        told["commit"] = commit or local
    if lacking := sorted({m.module for m in facts.missing if m.needed}):
        told["lacks"] = ", ".join(lacking)
    if dropped := [r for r in facts.requires if of_the_builder(r)]:
        told["left-out"] = ", ".join(dropped)
    return told


def relabelled_name(facts: WheelFacts) -> str:
    """Return the file name of the relabelled wheel."""
    tags = "-".join(facts.file.removesuffix(".whl").split("-")[-3:])
    return f"triton-{label_of(facts)}-{tags}.whl"


def alias_name(version: str) -> str:
    """Return the file name of the alias that goes with a relabelled wheel."""
    return f"triton_dist-{version}-py3-none-any.whl"


def write_relabelled(path: Path, facts: WheelFacts, told: Mapping[str, str], folder: Path) -> Path:
    """Write the relabelled wheel into `folder`; the same wheel gives the same bytes.

    Name, version and the requirements of the builder's machine change in METADATA, PROVENANCE is
    added, RECORD is written anew; every other file keeps its bytes.
    """
    label = label_of(facts)
    stem = f"triton-{label}"
    out = folder / relabelled_name(facts)
    new = f"{stem}.dist-info"
    with zipfile.ZipFile(path) as source, WheelWriter(out, new) as target:
        old = info_folder(source)
        # Installers look for both folders under the wheel's own name.
        own = {old: new, f"{old.removesuffix('.dist-info')}.data": f"{stem}.data"}
        digests = recorded_digests(source, old)
        for member in source.infolist():
            if member.is_dir() or member.filename.startswith(f"{old}/RECORD"):
                continue  # signatures of RECORD would be of the old one
            top, slash, rest = member.filename.partition("/")
            name = f"{own.get(top, top)}{slash}{rest}"
            if member.filename == f"{old}/METADATA":
                target.add(name, _metadata(source.read(member), label), member.external_attr)
            elif member.filename != f"{old}/PROVENANCE":
                target.copy(source, member, name, digests.get(member.filename, ""))
        target.add(f"{new}/PROVENANCE", _provenance(told))
    return out


def write_alias(version: str, told: Mapping[str, str], folder: Path) -> Path:
    """Write the alias: metadata of `triton-dist`, no package, one requirement."""
    out = folder / alias_name(version)
    info = f"triton_dist-{version}.dist-info"
    metadata = (
        "Metadata-Version: 2.1\nName: triton-dist\n"
        f"Version: {version}\n"
        f"Summary: Triton-distributed is installed here as triton {version}\n"
        f"Requires-Dist: triton=={version}\n"
    )
    wheel = "Wheel-Version: 1.0\nGenerator: tdstack\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with WheelWriter(out, info) as target:
        target.add(f"{info}/METADATA", metadata.encode())
        target.add(f"{info}/WHEEL", wheel.encode())
        target.add(f"{info}/PROVENANCE", _provenance(told))
    return out


def _metadata(text: bytes, label: str) -> bytes:
    head, separator, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = []
    for line in head.split(b"\n"):
        if line.startswith(b"Name:"):
            line = b"Name: triton"
        elif line.startswith(b"Version:"):
            line = b"Version: " + label.encode()
        elif line.startswith(b"Requires-Dist:") and of_the_builder(
            line[14:].strip().decode(errors="replace")
        ):
            continue
        lines.append(line)
    return b"\n".join(lines) + separator + body


def _provenance(told: Mapping[str, str]) -> bytes:
    return "".join(f"{key}: {value}\n" for key, value in told.items()).encode()
