"""Every Python with this folder on its path has the stand-ins, processes that it spawns too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import stand_ins

stand_ins.install()
