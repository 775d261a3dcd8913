"""The cluster file: one image by digest and what it needs, in one file that every script reads.

Lines of `KEY=VALUE` whose values need no quotes: a shell's `.`, `docker run --env-file`, systemd's
EnvironmentFile, Ansible and Python read the same from it (docs/cluster.md).
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tdstack import __version__
from tdstack.errors import HostError, UsageError
from tdstack.registry.reference import is_pinned

if TYPE_CHECKING:
    from tdstack.plan import Plan
    from tdstack.registry.reference import Repository

PREFIX: Final = "TDSTACK_"
MAX_BYTES: Final = 64 << 10
_LINE: Final = re.compile(r"(?P<key>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL)
# A subset of what every reader takes literally; `[` and `]` are in IPv6 hosts, and no shell expands
# a pattern in an assignment.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._:/@+\[\]-]+")
_FORMS: Final = {
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"),
    "cuda": re.compile(r"[0-9]{1,3}\.[0-9]{1,3}"),
    "triton": re.compile(r"distributed|stock"),
    "torch": re.compile(r"cuda|cpu|none"),
    "python": re.compile(r"[0-9]\.[0-9]{1,3}"),
    "platform": re.compile(r"linux/(?:amd64|arm64)"),
    "lock": re.compile(r"[0-9a-f]{64}"),
    "driver": re.compile(r"[0-9]+(?:\.[0-9]+)*"),
    "version": re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}"),
}


@dataclass(frozen=True)
class Cluster:
    """What a cluster runs. Each field is the variable TDSTACK_<FIELD> of the file.

    Attributes:
        image: HOST[:PORT]/PATH@sha256:HEX, the manifest of one platform.
        tag: the tag that contains the image's key.
        cuda: the CUDA line, such as 12.4.
        lock: sha256 of the lock slice, as the label io.tdstack.lock-slice has it.
        driver: the lowest NVIDIA driver that the line runs on.
        version: of tdstack, which wrote the file.

    Raises: UsageError for a value that is none of its kind, or that a reader would not take as it
    stands: white space, quotes, `$`, control characters.
    """

    image: str
    tag: str
    cuda: str
    triton: str
    torch: str
    python: str
    platform: str
    lock: str
    driver: str
    version: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            form = _FORMS.get(field.name, _PLAIN)
            if _PLAIN.fullmatch(value) is None or form.fullmatch(value) is None:
                raise _bad(_key(field.name), f"a value of the form {form.pattern}", value)
        if not is_pinned(self.image):
            raise _bad(_key("image"), "HOST[:PORT]/PATH@sha256:HEX, without a tag", self.image)

    @property
    def line(self) -> str:
        """Return the short name of the CUDA line, such as `cu124`."""
        return f"cu{self.cuda.replace('.', '')}"

    def render(self) -> str:
        """Return the text of the file. Pure."""
        return "".join(f"{_key(f.name)}={getattr(self, f.name)}\n" for f in fields(self))


def parse(text: str) -> Cluster:
    """Read a cluster file; empty lines and lines that begin with `#` are left out. Pure.

    Raises: UsageError naming the line for one that is no KEY=VALUE, or a key that is unknown or
    there twice; naming the key for one that is missing, or a value that is none of its kind.
    """
    known = {_key(f.name): f.name for f in fields(Cluster)}
    found: dict[str, str] = {}
    # Not splitlines: it also splits where a shell does not, as at a form feed.
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise _bad(f"line {number}", "KEY=VALUE, and nothing else on the line", line)
        if match["key"] not in known:
            raise _bad(f"line {number}", ", ".join(known), match["key"])
        if known[match["key"]] in found:
            raise _bad(f"line {number}", "every key once", match["key"])
        found[known[match["key"]]] = match["value"]
    for key, name in known.items():
        if name not in found:
            raise _bad(key, "a line with it", "none")
    return Cluster(**found)


def read(path: Path) -> Cluster:
    """Read a cluster file.

    Raises: UsageError as `parse` does, and for a file that is not there or is no text.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the cluster file cannot be read",
            where=str(path),
            got=getattr(error, "strerror", "") or str(error),
            remedy="`invoke push` and `invoke pull` write it with --cluster FILE",
        ) from error
    try:
        return parse(text)
    except UsageError as error:
        error.where = f"{path}: {error.where}"
        raise


def cluster_of(plan: Plan, repository: Repository, digest: str) -> Cluster:
    """Return what names the image of a plan, which has this digest in this repository. Pure."""
    # Reading the file must work with Python alone; plans need the toolkit's packages.
    from tdstack.ship.names import full_tag

    return Cluster(
        image=f"{repository}@{digest}",
        tag=full_tag(plan),
        cuda=plan.stack.cuda,
        triton=plan.stack.flavour,
        torch=plan.stack.torch,
        python=plan.stack.python,
        platform=plan.stack.platform,
        lock=plan.lock_slice,
        driver=plan.stack.line.driver_floor,
        version=__version__,
    )


def check_place(path: Path) -> None:
    """Find out before the long work whether a file can be written there after it.

    Raises: HostError when not.
    """
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise HostError(
            "the cluster file cannot be written there",
            where=f"--cluster {path}",
            expected="a file in a folder that exists and that you may write to",
        )


def write(path: Path, cluster: Cluster) -> None:
    """Write the file, whole or not at all; its readers need not be its writer.

    Raises: OSError.
    """
    descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(cluster.render())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _bad(where: str, expected: str, got: str) -> UsageError:
    return UsageError(
        "the cluster file does not say what it should",
        where=where,
        expected=expected,
        got=ascii(got[:200]) if not got.isprintable() else got[:200],
        remedy="write it again with `invoke push` or `invoke pull` and --cluster FILE; it is not "
        "written by hand",
    )
