"""Result objects in the formats that there are: a package holds one module a format, found by its name."""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeserve.errors import UsageError, nearest

if TYPE_CHECKING:
    from rich.console import Console

Export = Callable[[Any, "Console"], None]


def formats(package: str) -> tuple[str, ...]:
    """The formats that a package of exporters knows: the names of its modules."""
    return tuple(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))


def exporter(package: str, name: str) -> Export:
    """The function that writes a result to a console in this format. Raises UsageError."""
    known = formats(package)
    if name not in known:
        guess = nearest(name, known)
        raise UsageError(
            f"--format {name} is not supported",
            hint=f"did you mean {guess}?" if guess else f"formats are {', '.join(known)}",
        )
    found: Export = importlib.import_module(f"{package}.{name}").export
    return found


def as_text(export: Export, result: object) -> str:
    """What an exporter writes, without a line break at its end."""
    from rich.console import Console

    text = io.StringIO()
    export(result, Console(file=text, width=140, highlight=False))
    return text.getvalue().rstrip("\n")


def to_json(value: object) -> str:
    """Any result object as indented JSON."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
