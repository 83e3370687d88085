"""What gRPC clients may send, and how much at a time, in grpc's own words."""

from __future__ import annotations

from typing import Final

from edgeserve.serve.settings.server import Settings

# Calls that are inferred at a time; others wait for a thread.
THREADS: Final = 64
_STREAMS_PER_CONNECTION: Final = 1024
_KEEPALIVE_MS: Final = 60_000
_KEEPALIVE_ANSWER_MS: Final = 20_000


def channel_options(settings: Settings) -> list[tuple[str, int]]:
    """The limits of one server, for `grpc.server`."""
    limits = settings.effective_limits()
    # By a level, unlike by an algorithm, grpc takes one that the client accepts, if any.
    level = [("grpc.default_compression_level", 1)] if settings.grpc_compression else []
    return [
        *level,
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", limits.output_bytes),
        ("grpc.max_metadata_size", limits.head_bytes),
        ("grpc.absolute_max_metadata_size", 2 * limits.head_bytes),
        ("grpc.max_concurrent_streams", max(_STREAMS_PER_CONNECTION, settings.grpc_streams)),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_MS),
        ("grpc.http2.max_ping_strikes", 5),
        # Unless it is a worker, a second server on the port is an error, not half the calls.
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]
