"""Reads what clouds set in the environment of a container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgeserve.errors import UsageError

ANY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - a container's own network: the platform chooses what reaches it


def port_of(environ: Mapping[str, str], name: str, default: int) -> int:
    """A port in a variable. Raises UsageError."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65_536:
        raise UsageError(f"{name} '{text:.40}' is not a valid port", hint="expected 1 to 65535")
    return int(text)
