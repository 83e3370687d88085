"""What a client may send and how long it may take. docs/security.md gives the reasons."""

# Annotations are not strings here: `run --help` would have to compile a hundred of them.
from typing import Annotated

import msgspec

from edgeserve.serve.settings.setting import Group, Setting, Unit


def _count(help: str, more: str = "") -> Setting:
    return Setting(Group.LIMITS, help, more=more, ge=1)


def _bytes(help: str, more: str = "", default: str = "") -> Setting:
    return Setting(Group.LIMITS, help, Unit.BYTES, more, default, ge=1)


def _seconds(help: str, more: str = "") -> Setting:
    return Setting(Group.LIMITS, help, Unit.SECONDS, more, gt=0)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]` of serve.toml: sizes in bytes, times in seconds, `body_rate` in bytes a second."""

    head_bytes: Annotated[int, _bytes("Size of a request's head")] = 16_384
    headers: Annotated[int, _count("Headers of a request")] = 100
    uri_bytes: Annotated[int, _bytes("Size of a URI")] = 4_096
    body_bytes: Annotated[int, _bytes("Size of one body; also `--max-body`")] = 64 << 20
    bodies_bytes: Annotated[
        int,
        _bytes(
            "Size of all bodies at one time, and of all gRPC messages of 16 KiB and more",
            "Beyond it: 503, `RESOURCE_EXHAUSTED`",
        ),
    ] = 512 << 20
    chunks: Annotated[int, _count("Chunks of one chunked body")] = 65_536
    inflated_bytes: Annotated[
        int | None, _bytes("Size of a body after decompression", default="as `body_bytes`")
    ] = None
    inflated_ratio: Annotated[int, _count("Size of a body after decompression, by its own")] = 200
    json_depth: Annotated[int, _count("Nesting of JSON")] = 100
    elements: Annotated[
        int, _count("Elements of one tensor", "Computed exactly, before anything is allocated")
    ] = 1 << 28
    output_bytes: Annotated[int, _bytes("Size of one response")] = 1 << 30
    compress_bytes: Annotated[
        int, _bytes("Size from which responses are compressed for clients that accept it")
    ] = 1_024
    in_flight: Annotated[
        int,
        _count(
            "Requests handled at one time, of all models, over HTTP and gRPC",
            "Beyond it: 503 with `Retry-After`, `RESOURCE_EXHAUSTED`",
        ),
    ] = 1_024
    connections: Annotated[
        int,
        _count(
            "Open connections",
            "Beyond it: 503, unless a connection of a client without a key can be closed",
        ),
    ] = 1_024
    connections_per_address: Annotated[int, _count("Open HTTP connections of one address")] = 512
    shm_regions: Annotated[int, _count("Registered regions of shared memory")] = 256
    head_s: Annotated[float, _seconds("Time for a head")] = 10.0
    body_s: Annotated[float, _seconds("Time that a body may arrive slower than `body_rate`")] = 20.0
    body_rate: Annotated[int, _count("Bytes a second that a body must arrive at")] = 10_240
    send_s: Annotated[float, _seconds("Time that a client may leave a response unread")] = 60.0
    idle_s: Annotated[float, _seconds("Time that a connection may be unused")] = 75.0
    handshake_s: Annotated[float, _seconds("Time for a TLS handshake")] = 10.0
