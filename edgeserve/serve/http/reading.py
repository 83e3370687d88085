"""Reads the requests of one connection. A head is parsed and routed before any of its body is read.

A large body of known length is received into a buffer of its own, on which the tensors are views.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol, cast

from edgeserve.serve.http.chunks import ChunkDecoder
from edgeserve.serve.http.head import END, Head, KnownHead, Refused, parse_head
from edgeserve.serve.http.request import TOO_MANY_BODIES, Request
from edgeserve.serve.http.response import ErrorResponse, Refusal, Response, plain_error

if TYPE_CHECKING:
    from edgeserve.serve.http.buffers import BodyBuffers
    from edgeserve.serve.settings.limits import Limits

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_KEEPS: Final = b"\r\nConnection: keep-alive"
_KEPT_HEAD_BYTES: Final = 2_048
# The body of a refused request is read and thrown away up to this size; if it is longer, the connection ends.
_SKIPPED_BYTES: Final = 65_536
INCOMING_BYTES: Final = 16_384
_LOGGED_BYTES: Final = 300


class Handler(Protocol):
    """What heads and requests are handed to: the Router (edgeserve.serve.http.routing). Its methods never raise."""

    def admit(self, head: Head, address: str) -> Refusal | None:
        """Route a head before any of its body is read; the answer if it is refused."""
        ...

    def announced(self, head: Head) -> Refusal | None:
        """The answer to a routed head whose body cannot be right, before the body is read."""
        ...

    def handle(self, request: Request) -> None:
        """Answer a request, now or later."""
        ...


class Owner(Handler, Protocol):
    """What a connection needs of its server. All connections receive heads into the same `incoming`: the event
    loop hands over what it has read before it reads for another connection."""

    limits: Limits
    incoming: bytearray
    bodies: BodyBuffers

    def refused(self, refusal: Refusal, asked: tuple[str, bytes], address: str) -> None: ...


class Reading(asyncio.BufferedProtocol, ABC):
    """Reads one request, hands it over, and reads the next one when it has been answered."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._limits = owner.limits
        self._incoming = owner.incoming
        self._incoming_view = memoryview(owner.incoming)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: Head | None = None
        self._last: KnownHead | None = None
        self._body: memoryview | None = None  # while one of known length is being received
        self._received = 0
        self._seen = 0  # of it at `since`
        self._held = 0
        self._chunks: ChunkDecoder | None = None
        self._skip = 0  # bytes still to come of the body of a request that was refused
        self._keeps = b""  # the Connection header of answers, if the connection stays open
        self._current: Request | None = None
        self._close_after = False
        self._parsing = False
        self._paused = False
        self._blocked = False  # the client does not read its answers
        self._lingering = False
        self._aborted = False
        self._eof = False
        self._arrived = 0
        self._drain_at: int | None = None  # requests that begin behind this byte are not answered
        self.address = ""
        self.trusted = False  # once an authorised request was routed
        self.since = time.monotonic()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._received :]
        return self._incoming_view

    def buffer_updated(self, count: int) -> None:
        self._arrived += count
        if self._body is not None:
            self._received += count
            if not self.hold(count):
                self._refuse(Refused(503, TOO_MANY_BODIES, "bodies"))
            elif self._received == len(self._body):
                self._hand_over(self._body)
                self._advance()
            return
        if self._close_after and self._current is None:
            return
        if not self._buffer and self._head is None and self._current is None and not self._blocked:
            if self._begins_again(count):
                return
            self.since = time.monotonic()
        self._buffer += self._incoming_view[:count]
        self._advance()

    def _begins_again(self, count: int) -> bool:
        """Read a request whose head is like the last one's, as most are: all of it, or its beginning. False if
        it is not such a request, or more than one request came."""
        last = self._last
        start = 0 if last is None else last.find(self._incoming)
        # After `count` bytes follow those of an earlier read.
        if last is None or not 0 < start <= count:
            return False
        head = last.head
        length = head.length
        if length is None or head.expects_continue or start + length < count:
            return False
        if start + length > count:
            refusal = self._owner.announced(head)
            if refusal is not None:
                self._buffer += self._incoming_view[start:count]
                self._turn_away(head, refusal)
                return True
            self._head = head
            self.since = time.monotonic()
            self._seen = 0
            self._begin_body(length, self._incoming_view[start:count])
            return True
        self._head = head
        self._parsing = True  # an immediate answer must not start parsing
        self._hand_over(self._incoming[start:count])
        self._parsing = False
        return True

    def _advance(self) -> None:
        """Parse until a request is handed over, or more bytes are needed."""
        if self._parsing:
            return
        self._parsing = True
        try:
            while (
                self._current is None
                and not self._blocked
                and self._transport is not None
                and (self._buffer or self._head is not None)
                and self._step()
            ):
                pass
        except Refused as refusal:
            self._refuse(refusal)
        finally:
            self._parsing = False
        waits = self._current is not None or self._blocked
        if waits and len(self._buffer) > self._limits.head_bytes:
            self._pause()

    def _step(self) -> bool:
        """One step of parsing; False when more bytes are needed."""
        if self._head is None:
            return self._read_head()
        if self._skip:
            return self._skip_some()
        if self._chunks is not None:
            data, self._buffer = bytes(self._buffer), bytearray()
            rest = self._chunks.feed(data)
            if not self.hold(len(self._chunks.body) - self._held):
                raise Refused(503, TOO_MANY_BODIES, "bodies")
            if rest is None:
                return False
            self._buffer += rest
            self._hand_over(memoryview(self._chunks.body))
            return True
        length = self._head.length or 0
        if len(self._buffer) >= length:
            body = bytes(self._buffer[:length])
            del self._buffer[:length]
            self._hand_over(body)
            return True
        if self._body is None:
            self._begin_body(length, self._buffer)
            self._buffer = bytearray()
        return False

    def _begin_body(self, length: int, begun: bytearray | memoryview) -> None:
        """Receive the rest of the body into its own buffer."""
        assert self._head is not None
        self._body = self._owner.bodies.lend(length, self._head.aligned_at)
        self._received = len(begun)
        self._body[: self._received] = begun

    def _read_head(self) -> bool:
        # Empty lines before a request are allowed (RFC 9112, section 2.2).
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(END, 0, self._limits.head_bytes)
        if end < 0:
            self._check_partial_head()
            return False
        last = self._last
        if last is not None and last.find(self._buffer) == end + 4:
            head = last.head
            del self._buffer[: end + 4]
        else:
            raw = bytes(self._buffer[: end + 4])
            head = self._new_head(raw)
            del self._buffer[: end + 4]
            self._keeps = _KEEPS if head.asks_to_keep else b""
            self._last = None
            refusal = self._owner.admit(head, self.address)
            if refusal is not None:
                return self._turn_away(head, refusal)
            self.trusted = self.trusted or head.trusted
            if len(raw) <= _KEPT_HEAD_BYTES:
                self._last = KnownHead(raw, head, head.most)
        if head.length is not None and head.length > len(self._buffer):
            refusal = self._owner.announced(head)
            if refusal is not None:
                return self._turn_away(head, refusal)
        self._head = head
        self.since = time.monotonic()
        self._received = self._seen = 0
        if head.length is None:
            self._chunks = ChunkDecoder(self._limits, head.most)
        if head.expects_continue and head.length != 0 and self._transport is not None:
            self._transport.write(_CONTINUE)
        return True

    def _turn_away(self, head: Head, refusal: Refusal) -> bool:
        """Answer a request before its body is read, and skip that; whether parsing goes on after it."""
        length = head.length
        promised = head.expects_continue and length != 0  # the client may or may not send it
        if not head.keep_alive or promised or length is None or length > _SKIPPED_BYTES:
            self._end(refusal, head)
            return False
        there = min(length, len(self._buffer))
        del self._buffer[:there]
        self._close_after = self._close_after or self._is_drained()
        if self._close_after:
            self._end(refusal, head)
            return False
        self._report(refusal, head)
        self._write(refusal, head)
        self.since = time.monotonic()
        self._received = self._seen = 0
        self._skip = length - there
        self._head = head if self._skip else None
        return True

    def _skip_some(self) -> bool:
        there = min(self._skip, len(self._buffer))
        del self._buffer[:there]
        self._skip -= there
        self._received += there
        if self._skip:
            return False
        self._head = None
        self.since = time.monotonic()
        if self._is_drained():
            self._close_after = True
            self.close()
        return True

    def _check_partial_head(self) -> None:
        if len(self._buffer) >= self._limits.head_bytes:
            line_end = self._buffer.find(b"\r\n", 0, self._limits.head_bytes)
            if line_end < 0 or line_end > self._limits.uri_bytes + 32:
                raise Refused(
                    414, f"the URI is longer than {self._limits.uri_bytes} bytes", "uri_too_long"
                )
            raise Refused(
                431, f"the head is larger than {self._limits.head_bytes} bytes", "head_too_large"
            )
        if self._buffer.count(b"\n") != self._buffer.count(b"\r\n"):
            raise Refused(400, "lines must end with CRLF")

    def _new_head(self, raw: bytes) -> Head:
        head = parse_head(raw, self._limits)
        if head.length is not None and head.length > self._limits.body_bytes:
            raise Refused(
                413,
                f"the body is {head.length} bytes; the limit is {self._limits.body_bytes}",
                "body_too_large",
            )
        expects = head.headers.get(b"expect")
        if expects is not None and expects.lower() != b"100-continue":
            raise Refused(
                417, "the only expectation that can be met is 100-continue", "expectation"
            )
        return head

    def _hand_over(self, body: bytes | bytearray | memoryview) -> None:
        assert self._head is not None
        request = Request(self, self._head, cast("bytes | memoryview", body))
        self._close_after = self._close_after or not self._head.keep_alive
        self._head = self._body = self._chunks = None
        self._current = request
        self._owner.handle(request)

    def hold(self, count: int) -> bool:
        """`count` more bytes are held for the request; False if that is more than fits."""
        self._held += count
        return self._owner.bodies.hold(count)

    def _release(self) -> None:
        if self._held:
            self._owner.bodies.release(self._held)
            self._held = 0

    def _pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _report(self, error: ErrorResponse, head: Head | None) -> None:
        """Write the body of an error as its protocol does; count and log it if the request is not served."""
        write = plain_error if head is None else head.write_error or plain_error
        error.write(write)
        if isinstance(error, Refusal):
            asked = _begun(self._buffer) if head is None else (head.method, head.path)
            self._owner.refused(error, asked, self.address)

    # answering: edgeserve.serve.http.connection

    @abstractmethod
    def waits_for(self, request: Request) -> bool: ...

    @abstractmethod
    def respond(self, request: Request, response: Response) -> None: ...

    @abstractmethod
    def _write(self, response: Response, asked: Head | None) -> None: ...

    @abstractmethod
    def _refuse(self, refusal: Refused) -> None: ...

    @abstractmethod
    def _end(self, refusal: Refusal, head: Head | None) -> None: ...

    @abstractmethod
    def _is_drained(self) -> bool: ...

    @abstractmethod
    def close(self) -> None: ...


def _begun(data: bytearray) -> tuple[str, bytes]:
    """The method and the path of a head that was not parsed, for the log."""
    method, _, rest = (
        bytes(data[:_LOGGED_BYTES]).lstrip(b"\r\n").partition(b"\r\n")[0].partition(b" ")
    )
    return method.decode("latin-1"), rest.partition(b" ")[0].partition(b"?")[0]
