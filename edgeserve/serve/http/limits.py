"""What a client may send. Defaults are for a device on its own network; docs/security.md lists them."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds."""

    head_bytes: int = 16_384
    headers: int = 100
    uri_bytes: int = 4_096
    body_bytes: int = 64 << 20
    chunks: int = 65_536
    connections: int = 1_024
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
