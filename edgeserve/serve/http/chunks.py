"""Decoding a chunked body (RFC 9112, section 7.1), with its size and its number of chunks bounded."""

from __future__ import annotations

from typing import Final

from edgeserve.serve.http.head import Refused
from edgeserve.serve.settings.limits import Limits

_MAX_LINE: Final = 256
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class ChunkDecoder:
    """Decodes one body from bytes as they arrive; `body` grows until `feed` returns the bytes after its end."""

    def __init__(self, limits: Limits, most: int) -> None:
        """`most` is the largest body in bytes."""
        self.body = bytearray()
        self._limits = limits
        self._most = most
        self._buffer = bytearray()
        self._left = 0  # bytes of the current chunk still to come, with its CRLF
        self._chunks = 0
        self._trailer = False

    def feed(self, data: bytes) -> bytes | None:
        """None while the body is incomplete; then the bytes of the next request. Raises Refused."""
        self._buffer += data
        while True:
            if self._left:
                if not self._take_chunk():
                    return None
                continue
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_LINE:
                    raise Refused(400, "a chunk's size line is too long")
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if self._trailer:
                if not line:
                    return bytes(self._buffer)
                raise Refused(400, "trailers are not supported")
            self._begin_chunk(line)

    def _begin_chunk(self, line: bytes) -> None:
        size = line.partition(b";")[0].rstrip(b" \t")
        if not size or len(size) > 16 or not set(size) <= _HEX or len(line) > _MAX_LINE:
            raise Refused(400, "a chunk's size is not a hexadecimal number")
        length = int(size, 16)
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            raise Refused(
                413, f"the body has more than {self._limits.chunks} chunks", "too_many_chunks"
            )
        if len(self.body) + length > self._most:
            raise Refused(413, f"the body is larger than {self._most} bytes", "body_too_large")
        if length == 0:
            self._trailer = True
        else:
            self._left = length + 2

    def _take_chunk(self) -> bool:
        """Move what has arrived of the chunk to the body; whether the chunk is complete."""
        content = min(max(self._left - 2, 0), len(self._buffer))
        self.body += self._buffer[:content]
        del self._buffer[:content]
        self._left -= content
        if self._left > 2 or len(self._buffer) < 2:
            return False
        if bytes(self._buffer[:2]) != b"\r\n":
            raise Refused(400, "a chunk does not end with CRLF")
        del self._buffer[:2]
        self._left = 0
        return True
