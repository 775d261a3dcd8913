"""Tests run against the sources beside them, installed or not."""

import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "src"
if SOURCES.is_dir():
    sys.path.insert(0, str(SOURCES))
