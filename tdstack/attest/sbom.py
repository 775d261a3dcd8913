"""The bill of materials of an image, as CycloneDX 1.6 JSON (ECMA-424). Pure.

Equal contents, licences and subject give equal bytes: the serial number follows from the image's
digest, and there is no time in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Commit, Component, ComponentType, Pedigree
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tdstack import __version__
from tdstack.attest.contents import Contents, Kind, Material
from tdstack.lock.model import LockedTritonDistributed

MEDIA_TYPE = "application/vnd.cyclonedx+json"
NAMESPACE = uuid5(NAMESPACE_URL, "urn:tdstack:sbom")
KERNELS = "gemm-allreduce"
_TYPES: Mapping[Kind, ComponentType] = {
    "rootfs": ComponentType.OPERATING_SYSTEM,
    "image": ComponentType.CONTAINER,
    "cpython": ComponentType.PLATFORM,
}


@dataclass(frozen=True)
class Subject:
    """What the bill is of: an image in a registry, one in an engine, or a plan.

    `tag` is the full tag; `key` the content key of the last layer. `digest` is that of the
    manifest in the registry (`sha256:<hex>`), `image_id` the hex digits of that in the engine.
    """

    tag: str
    key: str
    digest: str = ""
    image_id: str = ""

    @property
    def reference(self) -> str:
        """Return what the bill calls it by."""
        return self.digest or (f"image:{self.image_id}" if self.image_id else f"plan:{self.key}")

    @property
    def serial(self) -> UUID:
        """Return the serial number: the same image, the same number."""
        return uuid5(NAMESPACE, self.reference)


def render_sbom(
    contents: Contents,
    subject: Subject,
    pinned: LockedTritonDistributed,
    licences: Mapping[str, str] = {},
) -> bytes:
    """Return the bill. `licences` maps a wheel's sha256 to its licence.

    `pinned` says which sources a Triton-distributed that was built from a commit came from.
    """
    image = _image(contents, subject)
    components = [_component(m, contents, pinned, licences) for m in contents.materials]
    components += _kernels(contents)
    tool = Component(name="tdstack", version=__version__, type=ComponentType.APPLICATION)
    tool.bom_ref.value = "tool:tdstack"
    metadata = BomMetaData(component=image)
    metadata.tools.components.add(tool)
    bom = Bom(serial_number=subject.serial, components=components, metadata=metadata)
    bom.register_dependency(image, components)
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library puts the present there; the same image must have the same bill tomorrow.
    del data["metadata"]["timestamp"]
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _image(contents: Contents, subject: Subject) -> Component:
    slice_ = contents.slice
    told = {
        "cuda": slice_.cuda,
        "triton": slice_.triton,
        "torch": slice_.torch,
        "platform": slice_.platform,
        "python": slice_.python,
        "archs": ",".join(slice_.archs),
        "driver": f">={slice_.driver_floor}",
        "key": subject.key,
        "image-id": subject.image_id,
        "lock-slice": slice_.digest,
    }
    purl = PackageURL("oci", None, "tdstack", subject.digest) if subject.digest else None
    return Component(
        name="tdstack",
        version=subject.tag,
        type=ComponentType.CONTAINER,
        bom_ref=subject.reference,
        hashes=_hashes(subject.digest.removeprefix("sha256:")),
        purl=purl,
        properties=_properties(told),
    )


def _component(
    material: Material,
    contents: Contents,
    pinned: LockedTritonDistributed,
    licences: Mapping[str, str],
) -> Component:
    told = {"layer": material.layer, "file": material.file, "origin": material.origin}
    slice_ = contents.slice
    if material.name in {p.name for p in slice_.toolkit}:
        told["toolkit"] = f"CUDA {slice_.cuda}"
    component = Component(
        name=material.name,
        version=material.version,
        type=_TYPES.get(material.kind, ComponentType.LIBRARY),
        bom_ref=material.purl,
        hashes=_hashes(material.sha256),
        purl=PackageURL.from_string(material.purl),
        properties=_properties(told),
    )
    if text := licences.get(material.sha256):
        component.licenses.add(LicenseFactory().make_from_string(text))
    if material.name == "triton" and slice_.triton == "distributed":
        _tell_origin(component, contents, pinned, material.origin)
    return component


def _tell_origin(
    component: Component, contents: Contents, pinned: LockedTritonDistributed, origin: str
) -> None:
    """Say where Triton-distributed comes from: the wheel as it was built, or the sources."""
    fork = contents.fork
    commit = fork.commit if fork else pinned.commit if origin == "commit" else ""
    ancestors = []
    if fork:
        ancestor = Component(
            name="triton-dist",
            version=fork.name.split("-")[1],
            type=ComponentType.LIBRARY,
            bom_ref=f"triton-distributed:{fork.sha256}",
            hashes=_hashes(fork.sha256),
            properties=_properties({"file": fork.name, "size": str(fork.size)}),
        )
        ancestors.append(ancestor)
        component.properties.update(_properties({"complete": "true" if fork.complete else "false"}))
    component.pedigree = Pedigree(
        ancestors=ancestors,
        commits=[Commit(uid=commit)] if commit else [],
        notes="Triton-distributed, installed under the name triton; "
        "only metadata differs from the wheel as it was built",
    )
    # A wheel that somebody gives need not come from the sources that the lock pins.
    if commit and pinned.commit.startswith(commit):
        component.external_references.add(
            ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(pinned.repository))
        )


def _kernels(contents: Contents) -> list[Component]:
    kernels = contents.kernels
    package = Component(
        name=KERNELS,
        version=kernels.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"kernels:{KERNELS}",
        purl=PackageURL("generic", "tdstack", KERNELS, kernels.version),
        properties=_properties({"layer": "kernels", "record-sha256": kernels.record}),
    )
    told = {"layer": "kernels", "triton": kernels.triton, "ptxas": kernels.ptxas}
    counts = {f"cubins:{arch}": str(count) for arch, count in kernels.cubins.items()}
    cubins = Component(
        name=contents.cubins_name,
        version=kernels.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"kernels:{contents.cubins_name}",
        purl=PackageURL("generic", "tdstack", contents.cubins_name, kernels.version),
        properties=_properties({**told, **counts, "manifest-sha256": kernels.bundle}),
    )
    for component in (package, cubins):
        component.licenses.add(LicenseFactory().make_from_string("Apache-2.0"))
    return [package, cubins]


def _hashes(sha256: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []


def _properties(told: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"tdstack:{name}", value=text) for name, text in told.items() if text]
