"""What gRPC clients may send, and how much at a time."""

from __future__ import annotations

import msgspec


class GrpcLimits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds. `threads` calls are inferred side by side, `queue` wait for a
    thread. `streams` may be open, each on two threads of its own. `processes` like this one share the port. Answers of `compress_bytes` and more
    are compressed for clients that accept it (None: none are)."""

    receive_bytes: int = 64 << 20
    messages_bytes: int = 512 << 20
    send_bytes: int = 1 << 30
    metadata_bytes: int = 16_384
    elements: int = 1 << 28
    threads: int = 64
    queue: int = 1024
    streams: int = 32
    compress_bytes: int | None = None
    streams_per_connection: int = 1024
    connections: int = 1024
    idle_s: float = 300.0
    handshake_s: float = 10.0
    keepalive_s: float = 60.0
    processes: int = 1

    def channel_options(self) -> list[tuple[str, int]]:
        # By a level, unlike by an algorithm, grpc takes one that the client accepts, if any.
        compression = [] if self.compress_bytes is None else [("grpc.default_compression_level", 1)]
        return [
            *compression,
            ("grpc.max_receive_message_length", self.receive_bytes),
            ("grpc.max_send_message_length", self.send_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.metadata_bytes),
            ("grpc.max_concurrent_streams", max(self.streams_per_connection, self.streams)),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", int(self.handshake_s * 1000)),
            ("grpc.max_connection_idle_ms", int(self.idle_s * 1000)),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_ping_strikes", 5),
            # Unless it is a worker, a second server on the port is an error, not half the calls.
            ("grpc.so_reuseport", int(self.processes > 1)),
        ]
