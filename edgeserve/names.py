"""The names that models may have: one rule, for `convert` and for servers.

A name is part of URLs, metric labels and file names. Letters and digits of any alphabet are fine there: URLs
carry them percent-encoded.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

NAME: Final = re.compile(r"[^\W_][\w.-]{0,127}")
NAME_RULE: Final = (
    "use up to 128 letters, digits, '.', '_' and '-', starting with a letter or a digit"
)


def composed(text: str) -> str:
    """The text with accents in the form in which people type them: some file systems store é as two characters."""
    return unicodedata.normalize("NFC", text)


def name_of(text: str) -> str:
    """The valid name closest to a text, such as a file's name without its suffix."""
    kept = re.sub(r"[^\w.-]+", "-", composed(text))
    return kept.lstrip("._-")[:128].rstrip("-") or "model"
