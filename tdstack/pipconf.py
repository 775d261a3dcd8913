"""The host's own pip configuration: the one place that says where packages come from."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache

# pip's own default, asked from pip itself so that it is stated nowhere else.
_DEFAULT_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


@dataclass(frozen=True)
class PipConfig:
    """Indexes (simple API addresses), link folders, TLS settings and proxy.

    Of `find_links` only local folders are looked into when files are fetched.
    """

    indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    certificate: str | None
    trusted_hosts: tuple[str, ...]
    proxy: str | None = None

    def uv_environment(self) -> dict[str, str]:
        """Return the variables that make uv see the same indexes as pip."""
        remote = [i for i in self.indexes if not i.startswith("file:")]
        environment = {"UV_DEFAULT_INDEX": remote[0]} if remote else {}
        if remote[1:]:
            environment["UV_INDEX"] = " ".join(remote[1:])
        if self.find_links:
            environment["UV_FIND_LINKS"] = ",".join(self.find_links)
        if self.certificate:
            environment["SSL_CERT_FILE"] = self.certificate
        if self.trusted_hosts:
            environment["UV_INSECURE_HOST"] = " ".join(self.trusted_hosts)
        if self.proxy:
            environment |= {"HTTP_PROXY": self.proxy, "HTTPS_PROXY": self.proxy}
        return environment


@lru_cache(maxsize=1)
def pip_config() -> PipConfig:
    """Read pip's configuration files and PIP_* variables, as `pip config list` merges them."""
    listing = _python(["-m", "pip", "config", "list"])
    values: dict[str, str] = {}
    for order in ("global.", "install.", "download.", ":env:."):
        for line in listing.splitlines():
            key, _, raw = line.partition("=")
            if key.startswith(order) and raw:
                values[key.removeprefix(order)] = str(ast.literal_eval(raw))
    index = values.get("index-url") or _python(["-c", _DEFAULT_INDEX]).strip()
    first = [] if values.get("no-index", "").lower() in {"1", "true", "yes"} else [index]
    certificate = values.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    return PipConfig(
        indexes=(*first, *values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        certificate=certificate or os.environ.get("SSL_CERT_FILE"),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        proxy=values.get("proxy"),
    )


def _python(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def without_credentials(text: str) -> str:
    """Return `text` with user names and passwords of its addresses replaced by ***."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)
