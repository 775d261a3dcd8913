"""The base root file system: mmdebstrap over pinned .deb files, without a network.

The packages are fetched by hash first and offered to mmdebstrap as a local repository that
holds nothing else, so that what is installed is exactly what the lock names.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tdstack.dpkg import STATUS, installed
from tdstack.errors import HostError, UpstreamError
from tdstack.lock.model import LockedDeb, Platform
from tdstack.process import find, last_words, run

# Times in the tar are clamped to this; any fixed value would do (2023-11-14T22:13:20Z).
SOURCE_DATE_EPOCH = 1_700_000_000
DEB_ARCH: dict[Platform, str] = {"linux/amd64": "amd64", "linux/arm64": "arm64"}
REMEDY = "apt-get install mmdebstrap (scripts/bootstrap.sh does it), or use --base REF@sha256:..."

# Files of the packages that no layer needs, with the reason each is left out.
LEFT_OUT = (
    "/usr/share/doc/*",  # texts; the copyright files stay
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/bin/*-lto-dump-*",  # link-time optimisation: Triton's launcher is one C file
    "/usr/lib/gcc/*/*/lto1",
    "/usr/bin/*gprofng*",
    "/usr/bin/*-ld.gold",
    "/usr/bin/*-dwp",
)
# Scripts run in the finished tree. The user has group 0, as platforms that pick a random
# user id do; apt's lists name no mirror, because the next user's mirror is not ours.
HOOKS = (
    'chroot "$1" useradd --uid 1000 --gid 0 --home-dir /home/tdstack --create-home '
    "--shell /bin/bash tdstack",
    'chmod -R g=u "$1/home/tdstack"',
    'rm -f "$1/etc/apt/sources.list" "$1/etc/hostname" "$1/etc/resolv.conf"',
    'rm -rf "$1/var/cache/ldconfig/aux-cache" "$1"/var/log/* "$1"/var/cache/debconf/*-old',
    'rm -f "$1"/var/lib/dpkg/*-old "$1"/etc/*-',
)


def tool_versions() -> dict[str, str]:
    """Return the versions of the programs that lay out the tar."""
    version = run([find("mmdebstrap", REMEDY), "--version"]).stdout.split()[-1]
    apt = run([find("apt-get", REMEDY), "--version"]).stdout.split()[1]
    dpkg = run([find("dpkg", REMEDY), "--version"]).stdout
    number = re.search(r"\d+\.\d+\.\d+", dpkg)
    return {"mmdebstrap": version, "apt": apt, "dpkg": number.group(0) if number else "?"}


def build_rootfs(
    suite: str,
    platform: Platform,
    asked: Iterable[str],
    debs: Mapping[str, Path],
    out: Path,
) -> None:
    """Write the root file system as an uncompressed tar to `out`.

    `debs` maps package file names to files on disk.
    Raises: HostError when mmdebstrap is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="tdstack-debs-") as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        Path(folder).chmod(0o755)  # apt reads it as its own user
        stanzas = []
        for name, path in sorted(debs.items()):
            link = repository / Path(name).name
            try:
                os.link(path, link)
            except OSError:  # another file system
                link.write_bytes(path.read_bytes())
            stanzas.append(_stanza(link))
        _write_index(repository, suite, DEB_ARCH[platform], "\n".join(stanzas))
        command = _mmdebstrap(suite, platform, asked, str(out))
        command += [f"deb [trusted=yes] copy:{repository} {suite} main"]
        _check(run(_offline(command), environment=_environment()))


def installed_packages(tar: Path) -> set[str]:
    """Return the names of the packages that a root file system says are installed."""
    with tarfile.open(tar) as archive:
        status = archive.extractfile(f"./{STATUS}")
        assert status is not None
        return {name for name, _version in installed(status.read().decode())}


def resolve_debs(
    suite: str, platform: Platform, asked: Iterable[str], pockets: Iterable[str]
) -> list[LockedDeb]:
    """Ask the host's Debian mirror which packages `asked` comes to, and for their hashes.

    `pockets` is `main`, the point release, whose files stay on every mirror; `security` adds
    the security archive, which drops a file as soon as a newer one supersedes it.
    Raises: HostError when mmdebstrap is missing; UpstreamError when no mirror answers.
    """
    with tempfile.TemporaryDirectory(prefix="tdstack-debs-") as folder:
        listing = Path(folder, "packages")
        command = _mmdebstrap(suite, platform, asked, "/dev/null")
        query = "dpkg-query -W -f '${Package}=${Version}\\n' | xargs apt-cache show"
        command[1:1] = [f'--customize-hook=chroot "$1" sh -c "{_escape(query)}" >{listing}']
        if "security" not in pockets:
            command[1:1] = [f'--aptopt=APT::Default-Release "{suite}"']
        done = run([*command, "--format=null"], environment=_environment())
        if done.returncode:
            raise UpstreamError(
                f"mmdebstrap could not resolve {suite}",
                got=last_words(done),
                remedy="check apt's sources and proxy on this host",
            )
        return sorted(_parse_packages(listing.read_text()), key=lambda deb: deb.name)


def _parse_packages(text: str) -> list[LockedDeb]:
    debs = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        if "Filename" in fields:
            name = fields["Filename"]
            debs[fields["Package"]] = LockedDeb(
                name=name,
                sha256=fields["SHA256"],
                size=int(fields["Size"]),
                package=fields["Package"],
                version=fields["Version"],
                archive="security" if name.startswith("pool/updates/") else "main",
            )
    return list(debs.values())


def _mmdebstrap(suite: str, platform: Platform, asked: Iterable[str], out: str) -> list[str]:
    command = [find("mmdebstrap", REMEDY), "--quiet", "--variant=minbase"]
    command += [f"--architectures={DEB_ARCH[platform]}", f"--include={','.join(sorted(asked))}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    # /bin and its like as links from the start: without it usrmerge comes, and perl with it.
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += ['--aptopt=APT::Install-Recommends "false"']
    command += [f"--customize-hook={hook}" for hook in HOOKS]
    return [*command, suite, out]


def _environment() -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _offline(command: list[str]) -> list[str]:
    unshare = [find("unshare", "apt-get install util-linux"), "--net"]
    return [*unshare, *command] if os.geteuid() == 0 else command


def _write_index(repository: Path, suite: str, arch: str, packages: str) -> None:
    # The suite has to have its name here too: mmdebstrap selects required packages by it.
    inner = f"main/binary-{arch}/Packages"
    index = repository / "dists" / suite / inner
    index.parent.mkdir(parents=True)
    index.write_text(packages)
    data = packages.encode()
    (repository / "dists" / suite / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: {arch}\nComponents: main\n"
        f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} {inner}\n"
    )


def _stanza(deb: Path) -> str:
    control = run([find("dpkg-deb", REMEDY), "--field", str(deb)])
    _check(control)
    with deb.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    size = deb.stat().st_size
    return f"{control.stdout.strip()}\nFilename: ./{deb.name}\nSize: {size}\nSHA256: {digest}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")


def _check(done: object) -> None:
    from subprocess import CompletedProcess

    assert isinstance(done, CompletedProcess)
    if done.returncode:
        raise HostError(
            "the base root file system could not be built",
            where=str(done.args[0]),
            got=last_words(done),
            remedy=REMEDY,
        )
