"""Text with holes: what the scripts of a cluster are rendered from. Pure; standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_HOLE: Final = re.compile(r"\$\{([A-Z_]+)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace every ${NAME}; a line whose only one is empty goes. Pure.

    Raises: KeyError for a name that is not there.
    """
    lines = []
    for line in template.splitlines():
        filled = _HOLE.sub(lambda match: values[match[1]], line)
        if filled == line or not filled.endswith(": "):
            lines.append(filled)
    return "\n".join(lines) + "\n"
