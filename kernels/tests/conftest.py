"""Tests run against the sources beside them, installed or not, and import each other's helpers."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src"
sys.path.insert(0, str(HERE))
if SOURCES.is_dir():
    sys.path.insert(0, str(SOURCES))
