"""Hosts for tests of what goes over ssh: a network namespace, a root of its own, an sshd.

Each host's root is an overlay over this machine's: programs are there, and what is written stays in
it and goes with it. It reaches this machine over a pair of interfaces, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tests.registries import installed_or_skip

# The root, then what no overlay can show: devices, the kernel's view of the namespaces.
_ENTER = """
set -eu
mount --make-rprivate /
overlay() {
  mkdir "$1/upper" "$1/work" "$1/root"
  mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" tdstack "$1/root" 2>&1
}
# What is written cannot lie on an overlay itself, as a container's disk may be: then in memory.
if ! overlay "$1"; then
  mount -t tmpfs -o size=4g,mode=0755 tdstack "$1"
  overlay "$1"
fi
cd "$1/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=1777 tdstack tmp
mount -t tmpfs -o mode=0755 tdstack run
mkdir -p run/sshd run/test run/shared root
mount --bind "$3" run/shared
cp "$2"/* run/test/
chmod 0700 root run/test
exec chroot . /usr/sbin/sshd -D -e -f /run/test/config
"""
_CONFIG = """
ListenAddress {address}
HostKey /run/test/host_key
AuthorizedKeysFile /run/test/user_key.pub
PidFile none
UsePAM yes
PasswordAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class SshHost:
    """A host that answers at `address`, and how to log in there."""

    name: str
    address: str
    key: Path
    known_hosts: Path

    @property
    def options(self) -> list[str]:
        """Return ssh's options that log in without asking, to this host and no other."""
        return [
            *("-i", str(self.key), "-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-F", "/dev/null"),
        ]

    @property
    def variables(self) -> dict[str, str]:
        """Return what an Ansible inventory says of this host."""
        return {
            "ansible_host": self.address,
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": " ".join(self.options),
        }

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command there and return its output."""
        words = ["ssh", *self.options, f"root@{self.address}", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def ssh_hosts(folder: Path, names: Sequence[str], shared: Path) -> Iterator[list[SshHost]]:
    """Yield running hosts; skip where they cannot be made.

    `shared` is on all of them as /run/shared, as a cluster's shared file system.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "sshd", "ssh", "unshare"):
        installed_or_skip(program)
    folder.mkdir(parents=True)
    key = _key(folder / "user_key")
    with ExitStack() as stack:
        yield [
            stack.enter_context(_host(folder / name, name, number, key, shared))
            for number, name in enumerate(names)
        ]


@contextmanager
def _host(folder: Path, name: str, number: int, user_key: Path, shared: Path) -> Iterator[SshHost]:
    (files := folder / "files").mkdir(parents=True)
    (mounts := folder / "mounts").mkdir()
    here, there = (str(address) for address in _network(os.getpid() * 8 + number).hosts())
    space, link = f"tdstack-{os.getpid()}-{number}", f"td{os.getpid()}.{number}"
    host_key = _key(files / "host_key")
    shutil.copy(user_key.with_suffix(".pub"), files / "user_key.pub")
    (files / "config").write_text(_CONFIG.format(address=there))
    known = folder / "known_hosts"
    kind, public = host_key.with_suffix(".pub").read_text().split()[:2]
    known.write_text(f"{there} {kind} {public}\n")
    sshd: subprocess.Popen[bytes] | None = None
    _ip("netns", "add", space)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("address", "add", f"{here}/30", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", space, "address", "add", f"{there}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        command = ["ip", "netns", "exec", space, "unshare", "--mount", "--pid", "--fork"]
        command += ["--kill-child", "sh", "-c", _ENTER, "sh"]
        command += [str(mounts), str(files), str(shared)]
        with (folder / "log").open("wb") as log:
            sshd = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        _wait_for(there, sshd, folder / "log")
        yield SshHost(name, there, user_key, known)
    finally:
        if sshd is not None:
            with suppress(ProcessLookupError):
                os.killpg(sshd.pid, signal.SIGKILL)
            sshd.wait(10)
        _ip("netns", "del", space)
        # It goes with the namespace, but only when the last process in there is gone.
        subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)


def _network(number: int) -> IPv4Network:
    """Return a network of two hosts, another one for each run that may go on at the same time.

    They are of the block for benchmarks of networks (RFC 2544): no real host has such an address.
    """
    block = IPv4Network("198.18.0.0/15")
    count = block.num_addresses // 4
    return IPv4Network((int(block.network_address) + number % count * 4, 30))


def _key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr}")


def _wait_for(address: str, sshd: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if sshd.poll() is not None:
            pytest.fail(f"sshd ended: {log.read_text()[-2000:]}")
        with suppress(OSError), socket.create_connection((address, 22), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"sshd did not answer within 20 s: {log.read_text()[-2000:]}")
