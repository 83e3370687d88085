"""What a client may send and how long it may take. docs/security.md gives the reasons."""

# Annotations are not strings here: `run --help` would have to compile a hundred of them.
from typing import Annotated

import msgspec

from edgeserve.serve.settings.setting import Group, Setting, Unit


def _count(help: str, more: str = "") -> Setting:
    return Setting(Group.LIMITS, help, more=more, ge=1, flag=None)


def _bytes(help: str, more: str = "", default: str = "") -> Setting:
    return Setting(Group.LIMITS, help, Unit.BYTES, more, default, ge=1, flag=None)


def _seconds(help: str, more: str = "") -> Setting:
    return Setting(Group.LIMITS, help, Unit.SECONDS, more, gt=0, flag=None)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]` of serve.toml: sizes in bytes, times in seconds, `body_rate` in bytes a second."""

    head_bytes: Annotated[int, _bytes("Size of a request head")] = 16_384
    headers: Annotated[int, _count("Number of headers")] = 100
    uri_bytes: Annotated[int, _bytes("Size of a URI")] = 4_096
    body_bytes: Annotated[int, _bytes("Size of one body; also `--max-body`")] = 64 << 20
    bodies_bytes: Annotated[
        int,
        _bytes(
            "Size of all bodies at one time, and all gRPC messages of 16 KiB and more",
            "Beyond: 503, `RESOURCE_EXHAUSTED`",
        ),
    ] = 512 << 20
    chunks: Annotated[int, _count("Chunks of one body")] = 65_536
    inflated_bytes: Annotated[
        int | None, _bytes("Size of a decompressed body", default="as `body_bytes`")
    ] = None
    inflated_ratio: Annotated[int, _count("Ratio of a decompressed body to the compressed one")] = (
        200
    )
    json_depth: Annotated[int, _count("Nesting of JSON")] = 100
    elements: Annotated[int, _count("Elements of one tensor, computed before allocation")] = 1 << 28
    image_pixels: Annotated[
        int, _count("Pixels of one image, read from its header before it is decoded")
    ] = 50_000_000
    output_bytes: Annotated[int, _bytes("Size of one response")] = 1 << 30
    compress_bytes: Annotated[
        int, _bytes("Responses of this size and more are compressed if the client accepts it")
    ] = 1_024
    in_flight: Annotated[
        int,
        _count(
            "Requests handled at one time, over all models and both protocols",
            "Beyond: 503 with `Retry-After`, `RESOURCE_EXHAUSTED`",
        ),
    ] = 1_024
    connections: Annotated[
        int,
        _count(
            "Open connections",
            "Beyond: 503, unless a waiting connection without a key can be closed",
        ),
    ] = 1_024
    connections_per_address: Annotated[int, _count("Open HTTP connections of one address")] = 512
    shm_regions: Annotated[int, _count("Registered shared memory regions")] = 256
    head_s: Annotated[float, _seconds("Time for a head")] = 10.0
    body_s: Annotated[float, _seconds("Time for which a body may be slower than `body_rate`")] = (
        20.0
    )
    body_rate: Annotated[int, _count("Bytes a second that a body must reach")] = 10_240
    send_s: Annotated[float, _seconds("Time for an unread response")] = 60.0
    idle_s: Annotated[float, _seconds("Time for an idle connection")] = 75.0
    handshake_s: Annotated[float, _seconds("Time for a TLS handshake")] = 10.0
