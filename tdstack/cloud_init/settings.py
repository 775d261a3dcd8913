"""What user data says beside the cluster file. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from tdstack.errors import UsageError

# As Debian Policy 5.6.1 and 5.6.12 have names and versions.
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+=(?:[0-9]+:)?[0-9][A-Za-z0-9.+~:-]*")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._-]+)+")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._:/~+\[\]-]+")


@dataclass(frozen=True)
class Settings:
    """How a machine is provisioned.

    Attributes:
        way: `image`, into Docker, or `prefix`, a folder without an engine.
        checkout: URL#sha256=HEX of an archive of this checkout: https, or file in the machine.
        packages, driver_packages: Debian packages, NAME=VERSION.
        smoke: `once` for an image, at every boot (`always`), or `off`.

    Raises: UsageError naming the option with a value that is none of its kind, or that would be a
    secret.
    """

    checkout: str
    way: Literal["image", "prefix"] = "image"
    prefix: str = "/opt/tdstack"
    packages: tuple[str, ...] = ()
    driver_packages: tuple[str, ...] = ()
    smoke: Literal["once", "always", "off"] = "once"

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if "@" in self.address or "?" in self.checkout:
            raise _bad("checkout", "an address that needs no secret", "one with a user or a query")
        if parts.scheme not in ("https", "file") or not _ADDRESS.fullmatch(self.address):
            raise _bad("checkout", "https://...#sha256=HEX or file:///...", self.checkout)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise _bad("checkout", "URL#sha256= and 64 hex digits", self.checkout)
        for name in ("packages", "driver_packages"):
            for package in getattr(self, name):
                if _PACKAGE.fullmatch(package) is None:
                    raise _bad(name, "NAME=VERSION: a version is pinned", package)
        if _PATH.fullmatch(self.prefix) is None or ".." in self.prefix:
            raise _bad("prefix", "an absolute path", self.prefix)
        if self.way not in ("image", "prefix"):
            raise _bad("way", "image or prefix", self.way)
        if self.smoke not in ("once", "always", "off"):
            raise _bad("smoke", "once, always or off", self.smoke)

    @property
    def address(self) -> str:
        """Return the checkout's address without its hash."""
        return self.checkout.partition("#")[0]

    @property
    def sha256(self) -> str:
        """Return the sha256 of the checkout's archive."""
        return self.checkout.partition("#sha256=")[2]

    def render(self) -> str:
        """Return the settings as lines that a shell reads; no value needs quotes. Pure."""
        pairs = {
            "WAY": self.way,
            "PREFIX": self.prefix,
            "CHECKOUT_URL": self.address,
            "CHECKOUT_SHA256": self.sha256,
            "PACKAGES": ",".join(self.packages),
            "DRIVER_PACKAGES": ",".join(self.driver_packages),
            "SMOKE": self.smoke,
        }
        return "".join(f"{name}={value}\n" for name, value in pairs.items())


def _bad(option: str, expected: str, got: str) -> UsageError:
    return UsageError(
        "an option has no value that fits",
        where=f"--{option.rstrip('s').replace('_', '-')}" if option != "address" else "--checkout",
        expected=expected,
        got=got,
    )
