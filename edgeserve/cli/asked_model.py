"""Which model `infer` asks: one of a server's, or a bundle."""

from __future__ import annotations

from pathlib import Path

from edgeserve.bundle import Bundle
from edgeserve.errors import UsageError


def only_model(url: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError(f"{url} lists no model that is ready", hint="--model NAME asks for one")
    raise UsageError(f"{url} has {len(names)} models", hint=f"--model {' or '.join(names)}")


def open_bundle(path: str) -> Bundle:
    host, _, port = path.rpartition(":")
    if host and port.isdigit() and not Path(path).exists():
        raise UsageError(
            f"{path} is neither a URL nor a bundle", hint=f"did you mean http://{path}?"
        )
    return Bundle.open(path)
