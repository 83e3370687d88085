"""How to serve: from flags, and from a `serve.toml` whose keys are the flags' names."""

from __future__ import annotations

import ipaddress
import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeserve.errors import UsageError, nearest

_HINT = "TLS and keys are not there yet: put a proxy with both in front, or add --insecure"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server. `grpc_port` None leaves gRPC off. `threads` are those of one call, 0 lets the engine choose; `instances` calls run
    side by side; `queue` bounds requests that wait or run; `timeout` (seconds, 0: none) is the
    deadline of requests that name none."""

    bundle: str
    name: str | None = None
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = None
    device: str | None = None
    variant: str | None = None
    fallback: Literal["auto", "never"] = "auto"
    threads: int = 0
    instances: int = 1
    spin: bool = False
    batching: bool = True
    queue: int = 1024
    timeout: float = 0.0
    max_body: int = 64 << 20
    drain_timeout: float = 30.0
    insecure: bool = False

    def check(self) -> None:
        """Raise UsageError for what cannot work or must not be done silently."""
        for key in ("http_port", "grpc_port"):
            port = getattr(self, key)
            if port is not None and not 0 <= port <= 65535:
                raise UsageError(f"{key} {port} is no port", hint="0 to 65535; 0 picks one")
        for key in ("instances", "queue", "max_body"):
            if getattr(self, key) < 1:
                raise UsageError(f"{key} must be at least 1")
        for key in ("threads", "timeout", "drain_timeout"):
            value = getattr(self, key)
            if value < 0 or not math.isfinite(value):
                raise UsageError(f"{key} must be a number of 0 or more, not {value}")
        if not self.insecure and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} is open to the network, and nothing protects the server", hint=_HINT
            )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(file: Path, flags: dict[str, Any]) -> Settings:
    """The settings in a TOML file, with `flags` that are not None in their place.

    A relative bundle path is relative to the file. Raises UsageError.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} is not a readable TOML file", cause=str(error)) from None
    if isinstance(values.get("bundle"), str):
        values["bundle"] = str(file.parent / values["bundle"])
    return settings_from(values | {k: v for k, v in flags.items() if v is not None}, str(file))


def settings_from(values: dict[str, Any], where: str = "the flags") -> Settings:
    """Typed and checked settings. Raises UsageError, naming an unknown key's nearest neighbour."""
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        guess = nearest(unknown[0], Settings.__struct_fields__)
        raise UsageError(
            f"{where}: unknown key '{unknown[0]}'",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    if "bundle" not in values:
        raise UsageError(
            "no bundle is named", hint="edgeserve run NAME.edge, or bundle = … in the file"
        )
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} cannot be used", cause=str(error)) from None
    settings.check()
    return settings
