"""How work that takes long reports what it is doing."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done and the share done (0-1; None where that is not known).
Say = Callable[[str, float | None], None]


def silent(what: str, share: float | None) -> None:
    """A `Say` that reports to nobody."""
