"""Where a file may come from: local folders, the host's pip indexes, the host's Debian mirrors.

The lock names no address. Every address used here comes from the host's own configuration,
so proxies, mirrors, credentials and certificate authorities need no second setting.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from packaging.utils import canonicalize_name
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tdstack.errors import UpstreamError
from tdstack.lock.model import LockedDeb, LockedFile
from tdstack.pipconf import PipConfig, without_credentials
from tdstack.process import run
from tdstack.retry import CONNECT_LIMIT_S, SILENCE_LIMIT_S

TIMEOUT_S = (CONNECT_LIMIT_S, SILENCE_LIMIT_S)


@dataclass(frozen=True)
class Place:
    """One place that may hold a file: a path on this host, or an address."""

    path: Path | None = None
    url: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.path else without_credentials(self.url)


class _PipSession(requests.Session):
    """A session with pip's own certificate, proxy and trusted hosts."""

    def __init__(self, pip: PipConfig) -> None:
        super().__init__()
        self._trusted = {host.split(":")[0] for host in pip.trusted_hosts}
        # One failed answer of an index must not end a fetch of a hundred files. The files
        # themselves are retried where they are downloaded, as only there a rest can be asked for.
        retries = Retry(4, connect=1, backoff_factor=0.3, status_forcelist=(500, 502, 503, 504))
        for index in pip.indexes:
            self.mount(index, HTTPAdapter(max_retries=retries))
        if pip.certificate:
            self.verify = pip.certificate
        if pip.proxy:
            self.proxies.update({"http": pip.proxy, "https": pip.proxy})

    def merge_environment_settings(  # type: ignore[no-untyped-def]
        self, url, proxies, stream, verify, cert
    ):
        """Leave certificates unchecked for hosts that pip was told to trust."""
        settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if urlsplit(url).hostname in self._trusted:
            settings["verify"] = False
        return settings


class Sources:
    """Finds the places of a file, nearest first."""

    def __init__(self, pip: PipConfig, folders: Sequence[Path] = ()) -> None:
        self._pip = pip
        self._folders = [*folders, *(p for link in pip.find_links if (p := _local(link)))]
        self.session = _PipSession(pip)
        self._pages: dict[tuple[str, str], dict[str, str]] = {}

    def places(self, file: LockedFile) -> Iterable[Place]:
        """Yield every place that lists the file.

        Raises: UpstreamError for an index that cannot be read.
        """
        base = Path(file.name).name
        for folder in self._folders:
            if folder.is_file() and folder.name == base:
                yield Place(path=folder)
            elif (folder / base).is_file():
                yield Place(path=folder / base)
        if isinstance(file, LockedDeb):
            for mirror in debian_mirrors():
                yield Place(url=f"{mirror.rstrip('/')}/{file.name}")
            return
        project = canonicalize_name(re.split(r"-\d", base, maxsplit=1)[0])
        for index in self._pip.indexes:
            if address := self._page(index, project).get(base):
                local = _local(address)
                yield Place(path=local) if local else Place(url=address)

    def _page(self, index: str, project: str) -> dict[str, str]:
        key = (index, project)
        if key not in self._pages:
            self._pages[key] = self._read_page(index, project)
        return self._pages[key]

    def _read_page(self, index: str, project: str) -> dict[str, str]:
        if folder := _local(index):
            page = folder / project / "index.html"
            links = re.findall(r'href="([^"#]+)', page.read_text()) if page.is_file() else []
            return {
                unquote(link.rsplit("/", 1)[-1]): link
                if "://" in link
                else (page.parent / unquote(link)).resolve().as_uri()
                for link in links
            }
        from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError

        try:
            with PyPISimple(index, session=self.session) as client:
                found = client.get_project_page(project, timeout=TIMEOUT_S)
        except NoSuchProjectError:
            return {}
        except (requests.RequestException, UnsupportedContentTypeError) as error:
            raise UpstreamError(
                "a package index could not be read",
                where=without_credentials(index),
                got=without_credentials(str(error))[:300],
                remedy="check `pip config list` and the proxy; or put the file into a folder and "
                "name it with --wheelhouse",
            ) from error
        return {package.filename: package.url for package in found.packages}


@lru_cache(maxsize=1)
def debian_mirrors() -> tuple[str, ...]:
    """Return the Debian mirrors of this host: TDSTACK_DEBIAN_MIRRORS, then apt's sources."""
    listed = os.environ.get("TDSTACK_DEBIAN_MIRRORS", "").split()
    if shutil.which("apt-get"):
        done = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        listed += done.stdout.split()
    return tuple(dict.fromkeys(listed))


def _local(address: str) -> Path | None:
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(address).expanduser() if not parts.scheme else None
