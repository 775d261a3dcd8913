"""Docker, through its API: any daemon that speaks it, whichever builder its client has.

tdstack brings finished layers, so neither buildx nor an embedded BuildKit is needed; the
same code serves Docker 20.10 and today's.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, Ulimit

from tdstack.assemble.image import Image, write_layout
from tdstack.assemble.tar import BLOCK, CHUNK
from tdstack.engines.base import Probe, RunRequest, RunResult, StoredImage
from tdstack.engines.export import image_of
from tdstack.errors import HostError, TimeLimitError, UpstreamError
from tdstack.wheelhouse.store import sha256_of

TIMEOUT_S = 1800


class Docker:
    """The images and containers of a Docker daemon (DOCKER_HOST, or the local socket)."""

    name = "docker"

    def __init__(self) -> None:
        try:
            self._client = docker.from_env(timeout=TIMEOUT_S)
            self._version = self._client.version()
        except (DockerException, requests.RequestException) as error:
            raise HostError(
                "no Docker daemon answers",
                got=str(error)[:300],
                remedy="start dockerd, or use --engine buildah",
            ) from error

    @staticmethod
    def probe() -> Probe:
        """Ask the daemon: a docker program on PATH proves nothing."""
        try:
            engine = Docker()
        except HostError as error:
            return Probe("docker", False, f"no daemon answers ({error.got[:120]})")
        return Probe("docker", True, f"daemon {engine._version['Version']} answers")

    def describe(self) -> str:
        """Return name and version."""
        return f"docker {self._version['Version']}"

    def storage(self) -> Path | None:
        """Return the daemon's folder, where it is on this host."""
        folder = Path(self._client.info().get("DockerRootDir", ""))
        return folder if folder.is_dir() else None

    def image(self, ref: str) -> StoredImage | None:
        """Return the image called `ref`, or None."""
        try:
            found = self._client.images.get(ref).attrs
        except (ImageNotFound, NotFound):
            return None
        return StoredImage(
            id=found["Id"].removeprefix("sha256:"),
            digest=next((d.split("@")[1] for d in found.get("RepoDigests") or []), ""),
            labels=found["Config"].get("Labels") or {},
            env=dict(pair.split("=", 1) for pair in found["Config"].get("Env") or []),
            diff_ids=tuple(found["RootFS"]["Layers"]),
            size=found["Size"],
        )

    def load(self, layout: Path, image: Image, ref: str) -> None:
        """Take an image over under the name `ref`."""
        write_layout(image, layout, ref)
        try:
            stream = archive_stream(layout, image, ref)
            answer = list(self._client.api.load_image(stream))  # type: ignore[no-untyped-call]
        except (APIError, requests.RequestException) as error:
            raise _refused("load", str(error)) from error
        bad = [row["error"] for row in answer if isinstance(row, dict) and "error" in row]
        if bad or self.image(ref) is None:
            raise _refused("load", "; ".join(bad) or json.dumps(answer)[-400:])

    def tag(self, ref: str, name: str) -> None:
        """Give the image `ref` a further name."""
        repository, _, tag = name.rpartition(":")
        self._client.images.get(ref).tag(repository, tag)

    def untag(self, ref: str) -> None:
        """Remove a name; absence is fine."""
        with suppress(APIError, ImageNotFound):
            self._client.images.remove(ref)

    def pull(self, ref: str) -> str:
        """Bring `ref` from its registry."""
        name, _, digest = ref.partition("@")
        colon = name.rfind(":")
        tagged = colon > name.rfind("/")
        repository, tag = (name[:colon], name[colon + 1 :]) if tagged else (name, "latest")
        try:
            pulled = self._client.images.pull(repository, tag=digest or tag)
        except (APIError, ImageNotFound, requests.RequestException) as error:
            raise UpstreamError(
                f"the image {ref} cannot be read",
                where="--base",
                got=str(error)[:300],
                remedy="check the name, the registry and your credentials",
            ) from error
        digests = [d for d in pulled.attrs.get("RepoDigests") or [] if d.startswith(repository)]
        return str(digests[0]) if digests else ref

    def export(self, ref: str, layout: Path, skip: Collection[str] = ()) -> Image:
        """Write the image into the OCI layout, layers uncompressed; the daemon gives them all."""
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        saved = blobs.parent / "saved.tar"
        try:
            with saved.open("wb") as out:
                for chunk in self._client.images.get(ref).save(named=True):
                    out.write(chunk)
            with tarfile.open(saved) as archive:
                entry = json.loads(_member(archive, "manifest.json").read())[0]
                config: dict[str, Any] = json.loads(_member(archive, entry["Config"]).read())
                sizes = {}
                for name, diff_id in zip(
                    entry["Layers"], config["rootfs"]["diff_ids"], strict=True
                ):
                    target = blobs / diff_id.removeprefix("sha256:")
                    with target.open("wb") as out, _member(archive, name) as source:
                        while piece := source.read(CHUNK):
                            out.write(piece)
                    if sha256_of(target) != target.name:
                        raise _refused("save", f"layer {name} is not {diff_id}")
                    sizes[diff_id] = target.stat().st_size
        finally:
            saved.unlink(missing_ok=True)
        return image_of(config, sizes)

    def owner(self) -> str:
        """Return our own ids, or root where the daemon itself runs as us."""
        rootless = "name=rootless" in (self._client.info().get("SecurityOptions") or [])
        return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"

    def run(self, request: RunRequest, say: Callable[[str], None] | None = None) -> RunResult:
        """Run a command in a throw-away container, without a network."""
        container = None
        try:
            container = self._client.containers.create(request.ref, **run_arguments(request))
            container.start()
            listener = threading.Thread(target=_listen, args=(container, say), daemon=True)
            if say:
                listener.start()
            status = container.wait(timeout=request.limit_s)["StatusCode"]
            if say:
                listener.join(10)
            out = container.logs(stdout=True, stderr=False).decode(errors="replace")
            error_text = container.logs(stdout=False, stderr=True).decode(errors="replace")
            return RunResult(int(status), out, error_text)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TimeLimitError(
                f"a container ran longer than {request.limit_s:.0f} s",
                where=" ".join(request.command),
            ) from error
        except (APIError, ImageNotFound) as error:
            if request.resources.gpus and "device driver" in str(error):
                raise HostError(
                    "docker cannot pass GPUs through",
                    got=str(error)[:300],
                    remedy="install the NVIDIA Container Toolkit, and restart the daemon",
                ) from error
            raise _refused("run", str(error)) from error
        finally:
            if container is not None:
                container.remove(force=True)


def _listen(container: Any, say: Callable[[str], None]) -> None:
    # What breaks off here is not lost: the whole log is read when the container has ended.
    with suppress(DockerException, requests.RequestException):
        for line in lines_of(container.logs(stdout=False, stderr=True, stream=True, follow=True)):
            say(line)


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a text that arrives in pieces, each as soon as it is whole. Pure."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def run_arguments(request: RunRequest) -> dict[str, Any]:
    """Render a run request as arguments of the API's container creation. Pure."""
    arguments: dict[str, Any] = {
        "command": list(request.command),
        "entrypoint": [],
        "user": request.user,
        "environment": dict(request.env),
        "network_mode": "none",
        "volumes": {
            str(m.source): {"bind": m.target, "mode": "rw" if m.writable else "ro"}
            for m in request.mounts
        },
    }
    wanted = request.resources
    if wanted.shm is not None:
        arguments["shm_size"] = wanted.shm
    limits = []
    if wanted.stack is not None:
        limits.append(Ulimit(name="stack", soft=wanted.stack, hard=wanted.stack))
    if wanted.locked_memory:
        limits.append(Ulimit(name="memlock", soft=-1, hard=-1))
    if limits:
        arguments["ulimits"] = limits
    if wanted.gpus:
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def archive_stream(layout: Path, image: Image, ref: str) -> Iterator[bytes]:
    """Yield a Docker archive of the image, without the layers whose blobs are absent.

    The daemon skips layers that it holds by chain id before it looks for their files.
    """
    config = image.config()
    blobs = layout / "blobs" / "sha256"
    names = [f"{step.blob.sha256}.tar" for step in image.steps]
    manifest = [{"Config": f"{image.id}.json", "RepoTags": [ref], "Layers": names}]
    yield from _tar_bytes("manifest.json", json.dumps(manifest).encode())
    yield from _tar_bytes(f"{image.id}.json", config)
    for step in dict.fromkeys(image.steps):
        path = blobs / step.blob.sha256
        if path.exists():
            header = tarfile.TarInfo(f"{step.blob.sha256}.tar")
            header.size = step.blob.size
            yield header.tobuf()
            with path.open("rb") as stream:
                while piece := stream.read(CHUNK):
                    yield piece
            yield b"\0" * (-step.blob.size % BLOCK)
    yield b"\0" * (2 * BLOCK)


def _tar_bytes(name: str, data: bytes) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    yield header.tobuf() + data + b"\0" * (-len(data) % BLOCK)


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    stream = archive.extractfile(name)
    assert isinstance(stream, io.BufferedReader)
    return stream


def _refused(action: str, words: str) -> HostError:
    full = "no space left" in words.lower()
    return HostError(
        "the disk of Docker's store is full" if full else f"docker refused to {action}",
        got=words[:600],
        remedy="free some space and run the verb again; it resumes"
        if full
        else "see the daemon's log, or use --engine buildah",
    )
