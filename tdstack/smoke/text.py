"""Text that checks said, made fit for XML and HTML. Pure."""

from __future__ import annotations

import re
from typing import Final

# Neither has a way to write these, not even escaped: one in a log would make a file unreadable.
_NO_TEXT: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """Return the text with the replacement character for every control character."""
    return _NO_TEXT.sub("\ufffd", text)
