"""The plug-in's environment variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SWITCH: Final = "SGL_USE_TP_OVERLAP"
MAX_TOKENS: Final = "SGL_TP_OVERLAP_MAX_TOKENS"
MIN_TOKENS: Final = "SGL_TP_OVERLAP_MIN_TOKENS"

MOST_BY_DEFAULT: Final = 8192
"""Rows, if MAX_TOKENS is not set: 274 MiB of symmetric memory at 8 ranks and 8192 features."""


class SettingsError(ValueError):
    """A variable that does not say a number of tokens, or a range without one."""


@dataclass(frozen=True)
class Settings:
    """Numbers of rows, M, of calls that are to be fused; ``most`` None is SGLang's own limit."""

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise SettingsError(
                f"{MIN_TOKENS} is {self.least} and {MAX_TOKENS} {self.most}: "
                "expected 1 <= least <= most"
            )


def settings_of(environ: Mapping[str, str]) -> Settings | None:
    """Return what the environment asks for; None if the switch is not 1.

    Raises: SettingsError.
    """
    if environ.get(SWITCH) != "1":
        return None
    most = _number(environ, MAX_TOKENS)
    least = _number(environ, MIN_TOKENS)
    return Settings(1 if least is None else least, most)


def tokens_of(settings: Settings, chunked_prefill_size: int | None) -> tuple[int, int]:
    """Return the least and the most rows of a fused call: also what a workspace is sized for.

    SGLang never has more rows than ``chunked_prefill_size`` in an ordinary batch; None or less
    than 1 means that it splits no prompt.

    Raises: SettingsError if that leaves no number.
    """
    if settings.most is not None:
        return settings.least, settings.most
    chunk = chunked_prefill_size or 0
    most = min(chunk, MOST_BY_DEFAULT) if chunk > 0 else MOST_BY_DEFAULT
    if most < settings.least:
        raise SettingsError(
            f"{MIN_TOKENS} is {settings.least}, over the {most} rows that SGLang's chunks have; "
            f"set {MAX_TOKENS} too"
        )
    return settings.least, most


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"{name} must be a number of tokens, got {text!r}")
    return int(text)
