"""OCI images as data: config, manifest, layout (image-spec 1.0)."""

from __future__ import annotations

import hashlib
import json
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tdstack.assemble.tar import Blob
from tdstack.lock.model import Platform
from tdstack.rootfs import SOURCE_DATE_EPOCH

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CREATED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(SOURCE_DATE_EPOCH))


@dataclass(frozen=True)
class Step:
    """One blob of an image and what made it."""

    blob: Blob
    made_by: str


@dataclass(frozen=True)
class Image:
    """An image: its blobs from the bottom up, and how a container of it starts."""

    platform: Platform
    steps: tuple[Step, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = "1000:0"
    workdir: str = "/home/tdstack"
    command: tuple[str, ...] = ("/bin/bash",)
    healthcheck: tuple[str, ...] = ()

    def config(self) -> bytes:
        """Return the image configuration; its sha256 is the image id in every engine."""
        running: dict[str, object] = {
            "User": self.user,
            "WorkingDir": self.workdir,
            "Cmd": list(self.command),
            "Env": [f"{name}={value}" for name, value in sorted(self.env.items())],
            "Labels": dict(sorted(self.labels.items())),
        }
        if self.healthcheck:
            nanoseconds = 1_000_000_000
            running["Healthcheck"] = {
                "Test": ["CMD", *self.healthcheck],
                "Interval": 3600 * nanoseconds,
                "Timeout": 120 * nanoseconds,
                "StartPeriod": 60 * nanoseconds,
            }
        return _json(
            {
                "created": CREATED,
                "architecture": self.platform.split("/")[1],
                "os": "linux",
                "config": running,
                "rootfs": {"type": "layers", "diff_ids": [s.blob.digest for s in self.steps]},
                "history": [{"created": CREATED, "created_by": s.made_by} for s in self.steps],
            }
        )

    def manifest(self) -> bytes:
        """Return the manifest; its sha256 is the image's digest."""
        config = self.config()
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": _descriptor(CONFIG_TYPE, config),
                "layers": [
                    {"mediaType": LAYER_TYPE, "digest": s.blob.digest, "size": s.blob.size}
                    for s in self.steps
                ],
            }
        )

    @property
    def id(self) -> str:
        """Return the sha256 of the configuration, in hex."""
        return hashlib.sha256(self.config()).hexdigest()

    @property
    def digest(self) -> str:
        """Return `sha256:<hex>` of the manifest."""
        return f"sha256:{hashlib.sha256(self.manifest()).hexdigest()}"

    @property
    def size(self) -> int:
        """Return the unpacked size of all layers as tars, in bytes."""
        return sum(step.blob.size for step in self.steps)


def write_layout(image: Image, layout: Path, name: str) -> None:
    """Make `layout` an OCI layout whose one image is `image` under the name `name`."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for data in (image.config(), image.manifest()):
        (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    descriptor = _descriptor(MANIFEST_TYPE, image.manifest())
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [descriptor]}))
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def write_archive(image: Image, layout: Path, out: Path) -> None:
    """Write the layout as an OCI archive (a tar) to `out`, in one step.

    Equal images give equal bytes.
    """
    wanted = [step.blob.sha256 for step in image.steps]
    wanted += [image.id, image.digest.removeprefix("sha256:")]
    names = ["oci-layout", "index.json", *(f"blobs/sha256/{b}" for b in sorted(set(wanted)))]
    temporary = out.with_name(f".{out.name}.partial")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                header = tarfile.TarInfo(name)
                header.mtime, header.size = SOURCE_DATE_EPOCH, (layout / name).stat().st_size
                with (layout / name).open("rb") as stream:
                    archive.addfile(header, stream)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
