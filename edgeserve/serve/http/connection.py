"""One client connection: bytes in, requests to the router one at a time, answers out in order.

A body of known length is received into one buffer of that length, on which the tensors are views; the
buffer lives as long as they do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import orjson

from edgeserve.serve.http.chunks import ChunkDecoder
from edgeserve.serve.http.head import END, Head, Refused, parse_head, status_line

if TYPE_CHECKING:
    from edgeserve.serve.http.limits import Limits

_JSON: Final = "application/json"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BYTES: Final = 65_536
_KEPT_HEAD_BYTES: Final = 1_024


class Response:
    """A status, a body in parts, and headers beside Content-Type and Content-Length."""

    __slots__ = ("content_type", "headers", "parts", "status")

    def __init__(
        self,
        status: int,
        parts: list[Any],
        content_type: str = _JSON,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.status = status
        self.parts = parts
        self.content_type = content_type
        self.headers = headers

    @classmethod
    def json(
        cls, document: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
    ) -> Response:
        return cls(status, [orjson.dumps(document)], headers=headers)

    @classmethod
    def error(
        cls, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> Response:
        return cls.json({"error": message}, status, headers)


class Request:
    """A whole request. `respond` answers it, once; `gone` is called if the client leaves before that."""

    __slots__ = ("_connection", "body", "gone", "headers", "method", "path")

    def __init__(self, connection: Connection, head: Head, body: memoryview) -> None:
        self._connection = connection
        self.method = head.method
        self.path = head.path
        self.headers = head.headers
        self.body = body
        self.gone: Callable[[], None] | None = None

    def respond(self, response: Response) -> None:
        self._connection.respond(self, response)


class Owner(Protocol):
    """What a connection needs of its server."""

    limits: Limits

    def connected(self, connection: Connection) -> bool: ...

    def disconnected(self, connection: Connection) -> None: ...

    def handle(self, request: Request) -> None: ...

    def refused(self, status: int) -> None: ...


class Connection(asyncio.Protocol):
    """Reads one request, hands it over, and reads on only when it has been answered."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._limits = owner.limits
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: Head | None = None
        self._last: tuple[bytes, Head] | None = None  # a client's heads are mostly all the same
        self._body: bytearray | None = None
        self._received = 0
        self._chunks: ChunkDecoder | None = None
        self._current: Request | None = None
        self._close_after = False
        self._parsing = False
        self._paused = False
        self._arrived = 0
        self._drain_at: int | None = None  # requests that begin behind this byte are not answered
        self.since = time.monotonic()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if not self._owner.connected(self):
            self._refuse(Refused(503, "too many connections"))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._owner.disconnected(self)
        if self._current is not None and self._current.gone is not None:
            self._current.gone()

    def data_received(self, data: bytes) -> None:
        if self._close_after and self._current is None:
            return
        self._arrived += len(data)
        if self._body is not None and self._received < len(self._body):
            data = self._fill_body(data)
            if self._received < len(self._body):
                return
        if not self._buffer and self._head is None and self._current is None:
            self.since = time.monotonic()
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        # A client that closes its writing half may still wait for the answer to what it sent.
        self._close_after = True
        return self._current is not None

    # parsing

    def _advance(self) -> None:
        """Parse as far as the buffer goes: until a request is handed over or more bytes are needed."""
        if self._parsing:
            return
        self._parsing = True
        try:
            while (
                self._current is None
                and self._transport is not None
                and (self._buffer or self._head is not None)
                and self._step()
            ):
                pass
        except Refused as refusal:
            self._refuse(refusal)
        finally:
            self._parsing = False
        if self._current is not None and len(self._buffer) > self._limits.head_bytes:
            self._pause()

    def _step(self) -> bool:
        """One step of parsing; False when more bytes are needed."""
        if self._head is None:
            return self._read_head()
        if self._chunks is not None:
            data, self._buffer = bytes(self._buffer), bytearray()
            rest = self._chunks.feed(data)
            if rest is None:
                return False
            self._buffer += rest
            self._hand_over(memoryview(self._chunks.body))
            return True
        assert self._body is not None
        if self._received < len(self._body):
            data, self._buffer = bytes(self._buffer), bytearray()
            self._buffer += self._fill_body(data)
            if self._received < len(self._body):
                return False
        self._hand_over(memoryview(self._body))
        return True

    def _read_head(self) -> bool:
        # Empty lines before a request are allowed (RFC 9112, section 2.2).
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(END, 0, self._limits.head_bytes)
        if end < 0:
            if len(self._buffer) >= self._limits.head_bytes:
                line_end = self._buffer.find(b"\r\n", 0, self._limits.head_bytes)
                if line_end < 0 or line_end > self._limits.uri_bytes + 32:
                    raise Refused(414, f"the URI is longer than {self._limits.uri_bytes} bytes")
                raise Refused(431, f"the head is larger than {self._limits.head_bytes} bytes")
            if self._buffer.count(b"\n") != self._buffer.count(b"\r\n"):
                raise Refused(400, "lines must end with CRLF")
            return False
        raw = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        if self._last is not None and self._last[0] == raw:
            head = self._last[1]
        else:
            head = self._new_head(raw)
            self._last = (raw, head) if len(raw) <= _KEPT_HEAD_BYTES else None
        self._head = head
        self.since = time.monotonic()
        if head.length is None:
            self._chunks = ChunkDecoder(self._limits)
        else:
            self._body = bytearray(head.length)
            self._received = 0
        if head.expects_continue and head.length != 0 and self._transport is not None:
            self._transport.write(_CONTINUE)
        return True

    def _new_head(self, raw: bytes) -> Head:
        head = parse_head(raw, self._limits)
        if head.length is not None and head.length > self._limits.body_bytes:
            raise Refused(
                413, f"the body is {head.length} bytes, at most {self._limits.body_bytes} are taken"
            )
        expects = head.headers.get(b"expect")
        if expects is not None and not head.expects_continue:
            raise Refused(417, "the only expectation that can be met is 100-continue")
        return head

    def _fill_body(self, data: bytes) -> bytes:
        """Copy into the body what belongs to it; what does not."""
        assert self._body is not None
        take = min(len(data), len(self._body) - self._received)
        self._body[self._received : self._received + take] = (
            data[:take] if take < len(data) else data
        )
        self._received += take
        return data[take:]

    def _hand_over(self, body: memoryview) -> None:
        assert self._head is not None
        request = Request(self, self._head, body)
        self._close_after = self._close_after or not self._head.keep_alive
        self._head = self._body = self._chunks = None
        self._current = request
        self._owner.handle(request)

    # answering

    def respond(self, request: Request, response: Response) -> None:
        if request is not self._current:
            return  # answered already, or its client is gone
        self._current = None
        self.since = time.monotonic()
        if self._transport is None:
            return
        self._close_after = self._close_after or self._is_drained()
        self._write(response, head_only=request.method == "HEAD")
        if self._close_after:
            self._buffer.clear()  # nothing behind the last answer is run
            self._transport.close()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._buffer and not self._parsing:
            self._advance()

    def _write(self, response: Response, *, head_only: bool = False) -> None:
        assert self._transport is not None
        size = sum(len(p) for p in response.parts)
        lines = [
            status_line(response.status),
            f"Content-Type: {response.content_type}\r\nContent-Length: {size}\r\n".encode(),
        ]
        lines += [
            f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in response.headers
        ]
        if self._close_after:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head_only or size == 0:
            self._transport.write(head)
        elif size <= _JOIN_BYTES:
            self._transport.write(b"".join([head, *response.parts]))
        else:
            self._transport.writelines([head, *response.parts])

    def _refuse(self, refusal: Refused) -> None:
        """Answer and close: after a malformed request nobody knows where the next one starts."""
        self._owner.refused(refusal.status)
        self._close_after = True
        self._current = None
        self._buffer.clear()
        self._head = self._body = self._chunks = None
        if self._transport is not None:
            self._write(Response.error(refusal.status, refusal.message))
            self._transport.close()

    def _pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # the server's side

    def sweep(self, now: float) -> None:
        """Close what has been waited for too long: a head, a body, the next request."""
        waited = now - self.since
        if self._current is not None or self._transport is None:
            return
        if self._head is not None:
            if waited > self._limits.body_s:
                self._refuse(
                    Refused(408, f"the body did not arrive within {self._limits.body_s:g} s")
                )
        elif self._buffer:
            if waited > self._limits.head_s:
                self._refuse(
                    Refused(408, f"the head did not arrive within {self._limits.head_s:g} s")
                )
        elif waited > self._limits.idle_s:
            self._transport.close()

    def finish(self) -> None:
        """The server drains: close once every request that has begun to arrive is answered."""
        self._drain_at = self._arrived
        idle = self._current is None and self._head is None
        if idle and self._is_drained() and self._transport is not None:
            self._close_after = True
            self._transport.close()

    def _is_drained(self) -> bool:
        """Between requests: whether the server drains and the next had not begun to arrive by then."""
        if self._drain_at is None:
            return False
        unread = self._buffer.lstrip(b"\r\n")  # as _read_head does
        return not unread or self._arrived - len(unread) >= self._drain_at

    @property
    def owes(self) -> bool:
        """Whether somebody waits here: a request is arriving or running, or an answer being sent."""
        if self._transport is None:
            return False
        arriving = self._head is not None or bool(self._buffer)
        return self._current is not None or arriving or self._transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
