"""What a probe answers: sections of facts, and reasons for what it does not know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Part:
    """Sections by path, such as `driver` or `spaces.shm`, each a record, a tuple or a mapping.

    A path may name its source after an @ (`gpus@nvml`): such lists are put together later
    (`tdstack/doctor/merge.py`).
    """

    sections: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def unknown(self, path: str, reason: str) -> None:
        """Note why a fact is not known; the first reason stays."""
        self.why.setdefault(path, " ".join(reason.split())[:300])
