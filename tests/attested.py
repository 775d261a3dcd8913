"""A final image in a registry as a push leaves it, without an engine: tiny layers, real labels."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdstack.assemble.image import CONFIG_TYPE, Image, Step
from tdstack.assemble.stored import BLOBS, blobs_label
from tdstack.assemble.tar import Blob
from tdstack.attest.keys import Signer
from tdstack.fork.model import ForkWheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile, LockedForkWheel
from tdstack.plan import PREFIX, Plan, make_plan, slice_of
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.ship.compress import Compression, compress
from tdstack.stack import BaseFacts, CPython, Request, make_stack
from tdstack.tags import line_tag

ROOT = Path(__file__).resolve().parent.parent
FORK = ForkWheel(
    file=LockedFile(
        name="triton-3.4.0+dist.0123abcd-cp311-cp311-linux_x86_64.whl", sha256="1" * 64, size=7
    ),
    version="3.4.0+dist.0123abcd",
    alias=LockedFile(
        name="triton_dist-3.4.0+dist.0123abcd-py3-none-any.whl", sha256="2" * 64, size=5
    ),
    source=LockedForkWheel(
        name="triton_dist-3.4.0-cp311-cp311-linux_x86_64.whl",
        sha256="0123abcd" * 8,
        size=9,
        python="3.11",
        glibc="2.17",
        commit="1512a811",
    ),
    complete=False,
)


@lru_cache(maxsize=16)
def planned(cuda: str = "12.4", triton: str = "stock", arch: str = "sm_80") -> Plan:
    """Return a plan without torch; with Triton-distributed it is FORK's."""
    request = Request(
        cuda=cuda,
        triton=triton,
        torch="none",
        archs=(arch,),
        fork=FORK if triton == "distributed" else None,
    )
    return make_plan(make_stack(load_lock(ROOT)[0], request), ROOT)


@lru_cache(maxsize=4)
def planned_on(base: str) -> Plan:
    """Return a plan on another base: `image`, or ours with a Python of its own: `cpython`."""
    own = LockedFile(name="cpython-3.12.5.tar.gz", sha256="5" * 64, size=9)
    requests = {
        "image": Request(
            base=f"docker.io/library/ubuntu@sha256:{'b' * 64}",
            base_facts=BaseFacts("/usr/bin/python3.12", "2.39"),
            python="3.12",
        ),
        "cpython": Request(cpython=CPython(own, "3.12", "python", "2.17", "x86_64")),
    }
    request = replace(requests[base], triton="stock", torch="none", archs=("sm_80",))
    return make_plan(make_stack(load_lock(ROOT)[0], request), ROOT)


def signer_of(number: int) -> Signer:
    """Return the same key for the same number."""
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


@dataclass
class Pushed:
    """A final image in a registry; what differs from a true one is said when it is made."""

    registry: Registry
    repository: Repository
    plan: Plan
    labels: Mapping[str, str] = field(default_factory=dict)
    slice_: Mapping[str, object] = field(default_factory=dict)
    compression: Compression = "zstd"
    cubins_of: Plan | None = None

    def __post_init__(self) -> None:
        layers = [
            ("tdstack base", {"etc/passwd": b"root\n"}),
            ("tdstack kernels", kernels_files(self.plan, self.slice_, self.cubins_of)),
        ]
        layers.append(("tdstack kernels bytecode", {"opt/x.pyc": b"bytecode"}))
        blobs, steps = [], []
        for made_by, files in layers:
            tar = tar_of(files)
            sha256 = hashlib.sha256(tar).hexdigest()
            steps.append(Step(Blob(sha256, len(tar)), made_by))
            packed = io.BytesIO()
            made = compress(io.BytesIO(tar), packed, self.compression, f"sha256:{sha256}", 1)
            blobs.append(Descriptor(made.media_type, made.digest, made.size))
            self.registry.put_blob(self.repository, packed.getvalue(), blobs[-1])
        labels = {**self.plan.final.labels, BLOBS: blobs_label(steps), **self.labels}
        config = Image(self.plan.stack.platform, tuple(steps), labels=labels).config()
        self.config = Descriptor.of(config, CONFIG_TYPE)
        self.registry.put_blob(self.repository, config, self.config)
        self.manifest = ImageManifest(self.config, tuple(blobs))
        document = self.manifest.document()
        self.registry.put_document(self.repository, document.digest, document)
        for tag in self.plan.final.tags:
            self.registry.put_document(self.repository, tag.rpartition(":")[2], document)
        self.image = document.descriptor()


def kernels_files(
    plan: Plan, slice_: Mapping[str, object] = {}, cubins_of: Plan | None = None
) -> dict[str, bytes]:
    """Return the files of a kernels layer that checks look at, and one that they do not.

    `slice_` changes what the image says of itself; its cubins are those of `cubins_of`.
    """
    compiled = cubins_of or plan
    versions = {p.name: p.version for p in compiled.stack.all_packages()}
    ptxas = next(v for n, v in versions.items() if n.startswith("nvidia-cuda-nvcc"))
    bundle = {
        "version": "0.3.0",
        "triton": {"distribution": versions["triton"]},
        "cubins": [
            {"arch": a, "ptxas": ptxas} for a, n in compiled.cubins.items() for _ in range(n)
        ],
    }
    line = line_tag(plan.stack.cuda)
    told = {**slice_of(plan.stack), **slice_}
    return {
        f"{PREFIX}/bin/tdstack-verify": b"#!" + bytes(50_000),
        f"{plan.site}/gemm_allreduce_cubins/{line}/manifest.json": json.dumps(bundle).encode(),
        f"{plan.site}/gemm_allreduce-0.3.0.dist-info/RECORD": b"gemm_allreduce/x.py,,\n",
        f"{PREFIX}/manifest.json": json.dumps(told, indent=1, sort_keys=True).encode(),
    }


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
