"""Calls of NVML whose failures are facts, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdstack.doctor.probes.part import Part


@dataclass
class Asker:
    """Calls functions of pynvml by name; one that fails answers None and leaves its reason."""

    nvml: Any
    part: Part
    codes: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in dir(self.nvml):
            if name.startswith("NVML_ERROR_"):
                word = name.removeprefix("NVML_ERROR_").lower().replace("_", "-")
                self.codes.setdefault(getattr(self.nvml, name), word)

    def __call__(self, path: str, name: str, *arguments: object) -> Any:
        """Return what the function `name` answers; `path` is the fact that it is for."""
        answer, reason = self.try_(name, *arguments)
        if reason:
            self.part.unknown(path, reason)
        return answer

    def try_(self, name: str, *arguments: object) -> tuple[Any, str]:
        """Return the answer, or None and the reason, such as `not-supported`."""
        try:
            answer = getattr(self.nvml, name)(*arguments)
            return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer, ""
        except self.nvml.NVMLError as error:
            return None, self.word(error)
        except Exception as error:  # an older pynvml lacks a function; a newer takes other words
            return None, f"{type(error).__name__}: {error}"

    def word(self, error: Any) -> str:
        """Return the name of an NVML error, such as `gpu-is-lost`."""
        return self.codes.get(getattr(error, "value", -1), str(error))
