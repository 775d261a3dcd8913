"""Invoke verbs, by what they are about. `invoke --list` shows them all."""

from __future__ import annotations

import sys

from invoke.collection import Collection

from tdstack.cli.images import build, fetch, lock, plan, quickstart
from tdstack.cli.running import bench, compile, doctor, install, lint, smoke, test, uninstall
from tdstack.cli.shipping import bundle, diff, pull, push, sbom, verify

namespace = Collection(
    *(plan, lock, fetch, build, quickstart),
    *(push, pull, bundle, sbom, diff, verify),
    *(install, uninstall, compile, doctor, smoke, bench, lint, test),
)

# Without this a closed stdout would end in a traceback instead of a plain exit.
sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
