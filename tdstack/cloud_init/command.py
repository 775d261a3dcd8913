"""The command line of scripts/cloud-init/render. Standard library only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tdstack.cloud_init.render import render
from tdstack.cloud_init.settings import Settings
from tdstack.cluster import read
from tdstack.errors import TdstackError, UsageError


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Print user data for the checkout at `root`; return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        settings = Settings(
            given.checkout,
            given.way,
            given.prefix,
            tuple(given.package),
            tuple(given.driver_package),
            given.smoke,
        )
        sources = _bytes(given.apt_sources)
        print(render(root, read(given.file), settings, _bytes(given.key), sources), end="")
    except TdstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    return 0


def _bytes(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        raise UsageError(
            "a file cannot be read", where=str(path), got=error.strerror or str(error)
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="render",
        description="Print user data for cloud-init, filled from the cluster file",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="cluster.env, by invoke push or pull --cluster")
    checkout = "URL#sha256=HEX of an archive of this checkout; https:// or file://"
    parser.add_argument("--checkout", required=True, help=checkout)
    way = "image (default): into Docker; prefix: into a folder, without an engine"
    parser.add_argument("--way", choices=("image", "prefix"), default="image", help=way)
    parser.add_argument(
        "--prefix", default="/opt/tdstack", help="the folder (default: %(default)s)"
    )
    package = "NAME=VERSION of a package to install, such as the engine's; repeatable"
    parser.add_argument("--package", action="append", default=[], help=package)
    driver = "the same for the driver, where the machine has a GPU; repeatable"
    parser.add_argument("--driver-package", action="append", default=[], help=driver)
    sources = "file of apt's deb822 sources for these packages, with their key in Signed-By"
    parser.add_argument("--apt-sources", type=Path, help=sources)
    parser.add_argument("--key", type=Path, help="public key that must have signed the image")
    smoke = "once for an image (default), always: at every boot, or off"
    parser.add_argument("--smoke", choices=("once", "always", "off"), default="once", help=smoke)
    return parser
