"""What a client may send and how long it may take. docs/security.md lists these with their reasons."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes in bytes, times in seconds, `body_rate` in bytes a second; `[limits]` of serve.toml.

    `bodies_bytes` bounds the bodies held at one time; `inflated_bytes` (None: as `body_bytes`) and
    `inflated_ratio` what a compressed body may become; `elements` those of one tensor; `output_bytes`
    one answer. Answers of `compress_bytes` and more are compressed for clients that ask for it.
    `in_flight` bounds the requests that are handled at one time, of all models together.
    A client may send a body slower than `body_rate` for `body_s`, and leave its answer unread for
    `send_s`.
    """

    head_bytes: int = 16_384
    headers: int = 100
    uri_bytes: int = 4_096
    body_bytes: int = 64 << 20
    bodies_bytes: int = 512 << 20
    chunks: int = 65_536
    inflated_bytes: int | None = None
    inflated_ratio: int = 200
    json_depth: int = 100
    elements: int = 1 << 28
    output_bytes: int = 1 << 30
    compress_bytes: int = 1_024
    in_flight: int = 1_024
    connections: int = 1_024
    connections_per_address: int = 512
    shm_regions: int = 256
    head_s: float = 10.0
    body_s: float = 20.0
    body_rate: int = 10_240
    send_s: float = 60.0
    idle_s: float = 75.0
    handshake_s: float = 10.0

    def problem(self) -> str | None:
        """What is wrong with these numbers, if anything."""
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value is not None and not value > 0:  # NaN, too
                return f"limits.{field} must be more than 0, not {value}"
        return None
