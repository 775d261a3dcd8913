"""buildah: no daemon; root, or rootless with subordinate ids."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

from tdstack.assemble.image import Image, write_layout
from tdstack.engines.base import Probe, RunRequest, RunResult, StoredImage
from tdstack.engines.export import adopt_folder, adopt_layout, prepare_layout
from tdstack.errors import HostError, IntegrityError, UpstreamError
from tdstack.process import last_words, run

REMEDY = "run scripts/bootstrap.sh as root, or choose another engine with --engine"


class Buildah:
    """The store and the containers of buildah.

    `environment` is what its programs get beside this process's, such as another store's
    configuration.
    """

    name = "buildah"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._run = partial(run, environment=environment)

    @staticmethod
    def probe() -> Probe:
        """Try it: a version proves nothing where storage cannot be opened."""
        if not shutil.which("buildah"):
            return Probe("buildah", False, "not on PATH")
        done = run(["buildah", "images", "--quiet"], limit_s=60)
        if done.returncode:
            return Probe("buildah", False, f"cannot open its storage: {last_words(done, 2)}")
        version = run(["buildah", "--version"]).stdout.split()[2]
        return Probe("buildah", True, f"{version}, no daemon needed")

    def describe(self) -> str:
        """Return name and version."""
        return " ".join(self._run(["buildah", "--version"]).stdout.split()[:3])

    def storage(self) -> Path | None:
        """Return the folder of the store."""
        done = self._run(["buildah", "info", "--format", "{{.store.GraphRoot}}"])
        return Path(done.stdout.strip()) if done.returncode == 0 else None

    def image(self, ref: str) -> StoredImage | None:
        """Return the image called `ref`, or None."""
        done = self._run(["buildah", "inspect", "--type", "image", ref])
        if done.returncode:
            return None
        data = json.loads(done.stdout)
        config = data["OCIv1"]
        return StoredImage(
            id=data["FromImageID"],
            digest=data["FromImageDigest"],
            labels=config["config"].get("Labels") or {},
            env=dict(pair.split("=", 1) for pair in config["config"].get("Env") or []),
            diff_ids=tuple(config["rootfs"]["diff_ids"]),
            size=sum(layer["size"] for layer in json.loads(data["Manifest"]).get("layers", [])),
        )

    def load(self, layout: Path, image: Image, ref: str) -> None:
        """Take an image over under the name `ref`."""
        write_layout(image, layout, ref)
        # buildah names what it pulls from a layout after the folder; the name is ours alone
        # for the moment it exists, so that two builds cannot take it from each other.
        alias = f"tdstack-load-{uuid.uuid4().hex[:12]}"
        link = layout.parent / alias
        link.symlink_to(layout.name)
        try:
            self._must(self._run(["buildah", "pull", "--quiet", f"oci:{alias}"], cwd=layout.parent))
            self._must(self._run(["buildah", "tag", image.id, ref]))
        finally:
            link.unlink()
            self._run(["buildah", "rmi", f"localhost/{alias}:latest"])

    def tag(self, ref: str, name: str) -> None:
        """Give the image `ref` a further name."""
        self._must(self._run(["buildah", "tag", ref, name]))

    def untag(self, ref: str) -> None:
        """Remove a name; absence is fine."""
        self._run(["buildah", "rmi", ref])

    def pull(self, ref: str) -> str:
        """Bring `ref` from its registry."""
        done = self._run(["buildah", "pull", "--quiet", ref])
        if done.returncode:
            raise UpstreamError(
                f"the image {ref} cannot be read",
                where="--base",
                got=last_words(done, 4),
                remedy="check the name, the registry and your credentials",
            )
        stored = self.image(ref)
        assert stored is not None
        return f"{ref.split('@')[0]}@{stored.digest}"

    def export(self, ref: str, layout: Path, skip: Collection[str] = ()) -> Image:
        """Write the image into the OCI layout, layers uncompressed."""
        # An oci: target compresses whatever it is told; a dir: one takes layers as they are. But
        # an oci: one leaves layers out that it has, and takes a file's name for that.
        saved = layout.parent / f"saved-{uuid.uuid4().hex[:8]}"
        try:
            if skip:
                prepare_layout(saved, skip)
                self._must(self._run(["buildah", "push", "--quiet", ref, f"oci:{saved}"]))
                return adopt_layout(saved, layout)
            self._must(
                self._run(
                    ["buildah", "push", "--quiet", "--disable-compression", ref, f"dir:{saved}"]
                )
            )
            return adopt_folder(saved, layout)
        finally:
            shutil.rmtree(saved, ignore_errors=True)

    def owner(self) -> str:
        """Return root, whom a rootless buildah maps to the user who runs it."""
        return "0:0"

    def run(self, request: RunRequest, say: Callable[[str], None] | None = None) -> RunResult:
        """Run a command in a throw-away container, without a network."""
        container = f"tdstack-{uuid.uuid4().hex[:12]}"
        if request.resources.gpus:
            raise HostError(
                "buildah does not pass GPUs through to a container",
                where="--engine buildah",
                remedy="use --engine docker, with the NVIDIA Container Toolkit",
            )
        most = resource.getrlimit(resource.RLIMIT_STACK)[1]
        self._must(self._run(from_command(container, request, None if most < 0 else most)))
        try:
            command = run_command(container, request, os.geteuid() == 0)
            # A chroot has no process namespace: what the command forked would outlive it.
            done = self._run(command, limit_s=request.limit_s, say=say, group=True)
        finally:
            self._run(["buildah", "rm", container])
        return RunResult(done.returncode, done.stdout, done.stderr)

    @staticmethod
    def _must(done: CompletedProcess[str]) -> None:
        if done.returncode == 0:
            return
        words = last_words(done, 6)
        if "file integrity checksum failed" in words:  # it names the file
            raise IntegrityError(
                "a layer in buildah's store is not what was put there",
                where=" ".join(done.args[:3]),
                got=words,
                remedy="remove the image with `buildah rmi`, and build or pull it again",
            )
        full = "no space left" in words.lower()
        raise HostError(
            "the disk of buildah's store is full" if full else "buildah refused",
            where=" ".join(done.args[:3]),
            got=words,
            remedy="free some space and run the verb again; it resumes" if full else REMEDY,
        )


def from_command(container: str, request: RunRequest, most_stack: int | None) -> Sequence[str]:
    """Render what makes the container. Pure.

    `most_stack` is what this process may raise its stack to, and None without a limit: more
    would be refused. Chroot isolation has the host's /dev/shm, whatever size is asked for.
    """
    command = ["buildah", "from", "--pull-never", "--name", container]
    wanted = request.resources
    if wanted.shm is not None:
        command += ["--shm-size", str(wanted.shm)]
    if wanted.stack is not None:
        stack = wanted.stack if most_stack is None else min(wanted.stack, most_stack)
        command += ["--ulimit", f"stack={stack}:{stack}"]
    return [*command, request.ref]


def run_command(container: str, request: RunRequest, root: bool) -> Sequence[str]:
    """Render a run request as buildah's command line. Pure.

    Chroot isolation works in containers and on every cgroup layout, but shares the host's
    network; as root a network namespace with nothing but its loopback takes it away.
    """
    if root:
        loopback = [sys.executable, str(Path(__file__).with_name("loopback.py"))]
        command = ["unshare", "--net", *loopback, "buildah", "run", "--isolation", "chroot"]
    else:
        command = ["buildah", "run", "--isolation", "rootless", "--network", "none"]
    command += ["--user", request.user]
    for name, value in sorted(request.env.items()):
        command += ["--env", f"{name}={value}"]
    for mount in request.mounts:
        mode = "rw" if mount.writable else "ro"
        command += ["--volume", f"{mount.source}:{mount.target}:{mode}"]
    return [*command, container, "--", *request.command]
