"""A machine in small for cloud-init: Debian in a folder, with cloud-init and systemd's tools.

What it lacks is a kernel of its own: systemctl is told so, and starts nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.engine_stores import root_or_skip

PACKAGES = "cloud-init,python3-jsonschema,systemd"
# Only what user data of ours uses: this machine shares the host's network and kernel.
CONFIG = """
datasource_list: [NoCloud]
network: {config: disabled}
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT = """
cloud-init init --local && cloud-init init
cloud-init modules --mode config && cloud-init modules --mode final
"""
# In place of a checkout's verbs: says what it was asked for, and ends as the test wants.
INVOKE = """#!/bin/sh
echo "$@" >>/calls
printf '%s' "$(cat /answers/$1.json 2>/dev/null || echo '{}')"
while [ $# -gt 0 ]; do
  [ "$1" != --cluster ] || cp "${PULLED:-/etc/tdstack/cluster.env}" "$2"
  [ -e "/answers/$1.code" ] && code=$(cat "/answers/$1.code")
  shift
done
exit "${code:-0}"
"""
BOOTSTRAP = f"""#!/bin/sh
set -e
echo bootstrap >>/calls
mkdir -p .venv/bin
cat >.venv/bin/invoke <<'END'
{INVOKE}END
chmod +x .venv/bin/invoke
"""


@dataclass(frozen=True)
class Ran:
    """How a command in the machine ended."""

    code: int
    said: str


@dataclass(frozen=True)
class Machine:
    """The machine; `root` is its root folder."""

    root: Path

    def run(self, *command: str, **environment: str) -> Ran:
        """Run a command as root of the machine, with a host name and processes of its own."""
        isolated = ["unshare", "--mount", "--uts", "--pid", "--fork"]
        isolated += [f"--mount-proc={self.root / 'proc'}", "chroot", str(self.root)]
        names = ("http_proxy", "https_proxy", "no_proxy")
        proxies = {name: os.environ[name] for name in names if name in os.environ}
        done = subprocess.run(
            [*isolated, *command],
            env={"PATH": PATH, "SYSTEMD_OFFLINE": "1"} | proxies | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout)

    def boot(self, user_data: str) -> Ran:
        """Give the machine user data as a new instance, and let cloud-init do its work."""
        seed = self.root / "var/lib/cloud/seed/nocloud"
        seed.mkdir(parents=True, exist_ok=True)
        self.run("cloud-init", "clean", "--logs")
        (seed / "user-data").write_text(user_data)
        instance = hashlib.sha256(os.urandom(8)).hexdigest()[:8]
        (seed / "meta-data").write_text(f"instance-id: i-{instance}\n")
        return self.run("sh", "-c", BOOT)

    def seed(self, user_data: str) -> None:
        """Write the files of user data, as cloud-init does at a boot, in less time."""
        for file in yaml.safe_load(user_data)["write_files"]:
            data = file["content"].encode()
            if "encoding" in file:
                data = gzip.decompress(b64decode(data))
            target = self.root / file["path"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(int(file["permissions"], 8))

    def provision(self, **environment: str) -> Ran:
        """Run what the unit starts."""
        unit = (self.root / "etc/systemd/system/tdstack-provision.service").read_text()
        line = next(x for x in unit.splitlines() if x.startswith("ExecStart="))
        return self.run(line.removeprefix("ExecStart="), **environment)

    def wipe(self) -> None:
        """Forget what earlier tests left."""
        for path in ("etc/tdstack", "var/lib/tdstack", "opt", "answers", "sys"):
            shutil.rmtree(self.root / path, ignore_errors=True)
            (self.root / path).mkdir(parents=True)
        for program in (self.root / "usr/local/bin").iterdir():
            program.unlink()
        (self.root / "calls").unlink(missing_ok=True)

    def checkout(self, name: str = "checkout.tar.gz", top: str = "tdstack/") -> str:
        """Put an archive of a checkout into the machine; return how --checkout names it."""
        data = _archive({f"{top}scripts/bootstrap.sh": BOOTSTRAP, f"{top}smoke_tests/x.py": ""})
        path = self.root / "srv" / name
        path.write_bytes(data)
        return f"file:///srv/{name}#sha256={hashlib.sha256(data).hexdigest()}"

    def program(self, path: str, text: str) -> None:
        """Write a program."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755)

    def answer(self, word: str, code: int = 0, report: object = None) -> None:
        """Have the verb `word`, or one with that option, print a report and end with a code."""
        (self.root / "answers" / f"{word}.code").write_text(str(code))
        if report is not None:
            (self.root / "answers" / f"{word}.json").write_text(json.dumps(report))

    @property
    def calls(self) -> list[str]:
        """Return the verbs that were asked for, with their options."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def verdict(self) -> dict[str, Any]:
        """Return what the machine says of itself."""
        read: dict[str, Any] = json.loads((self.root / "var/lib/tdstack/verdict.json").read_text())
        return read


@contextmanager
def cloud_machine(folder: Path) -> Iterator[Machine]:
    """Make the machine."""
    root_or_skip("mmdebstrap")
    root = folder / "machine"
    install(root)
    (root / "etc/cloud/cloud.cfg.d/99_test.cfg").write_text(CONFIG)
    yield Machine(root)


def install(root: Path) -> None:
    """Install Debian into a folder."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    command += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    done = subprocess.run(
        [*command, "bookworm", str(root)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(done.stderr)
        pytest.skip(f"Debian's packages are out of reach: {done.stderr[-300:]}")


def _archive(files: dict[str, str]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    return written.getvalue()
