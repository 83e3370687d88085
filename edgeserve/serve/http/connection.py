"""One client connection: hands over one request at a time, sends the answers in order, and closes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from edgeserve.serve.http.head import Head, Refused
from edgeserve.serve.http.reading import Owner, Reading
from edgeserve.serve.http.response import RETRY, ErrorResponse, Refusal, Response

if TYPE_CHECKING:
    from edgeserve.serve.http.request import Request

_CLOSES: Final = b"\r\nConnection: close"
_LINGER_S: Final = 2.0
_JOIN_BYTES: Final = 65_536
# If a client has closed its side, a request that has not begun within this time is not run.
_LEFT_S: Final = 0.05
# While a server drains, a request that arrives within this time on an idle connection is answered: it was on its way.
_ON_ITS_WAY_S: Final = 0.2


class Server(Owner, Protocol):
    """What a connection needs of its server."""

    def connected(self, connection: Connection) -> str | None: ...

    def disconnected(self, connection: Connection) -> None: ...


class Connection(Reading):
    """Answers the requests that Reading reads. Ends when the server or the client ends it, or on a timeout."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        problem = self._server.connected(self)
        if problem is not None:
            self._refuse(Refused(503, problem, "connections"))
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._release()
        self._body = None
        self._server.disconnected(self)
        if self._current is not None and self._current.gone is not None:
            self._current.gone()

    def eof_received(self) -> bool:
        # Clients that give up close their side; so do a few that still wait for the answer. As with nginx, a
        # request that has begun is answered, and one that has not is not run.
        self._eof = True
        if self._current is not None:
            self._look_for_begin(self._current)
        return self.owes_later

    def _look_for_begin(self, request: Request) -> None:
        asyncio.get_running_loop().call_later(_LEFT_S, self._give_up, request)

    def _give_up(self, request: Request) -> None:
        """Cancel the request of a client that has closed its side, unless it has begun."""
        if request is not self._current or self._transport is None:
            return
        if request.work is not None and not request.work.started:
            self._transport.close()  # connection_lost does the rest
        else:  # what it waits for next may not begin
            self._look_for_begin(request)

    def pause_writing(self) -> None:
        self._blocked = True
        self.since = time.monotonic()

    def resume_writing(self) -> None:
        self._blocked = False
        self.since = time.monotonic()
        self._resume()

    # answering

    def waits_for(self, request: Request) -> bool:
        return request is self._current and self._transport is not None

    def respond(self, request: Request, response: Response) -> None:
        if request is not self._current:
            return  # answered already, or its client is gone
        self._current = None
        if not self._blocked:
            self.since = time.monotonic()
        request.body = b""
        self._release()
        if self._transport is None:
            return
        self._close_after = self._close_after or self._is_drained()
        if response.failed:
            self._report(cast("ErrorResponse", response), request.head)
        self._write(response, request.head)
        if self._close_after:
            self._buffer.clear()  # requests after the last answer are not run
            self._transport.close()
            return
        if self._paused or self._buffer or self._eof:
            self._resume()

    def _resume(self) -> None:
        if self._blocked or self._current is not None or self._transport is None:
            return
        if self._paused:
            self._paused = False
            if not self._eof:
                self._transport.resume_reading()
        if self._parsing:
            return
        if self._buffer:
            self._advance()
        if self._eof:
            if self._current is not None:
                self._look_for_begin(self._current)
            elif not self._blocked:
                self.close()

    def _write(self, response: Response, asked: Head | None) -> None:
        assert self._transport is not None
        parts = response.parts
        size = len(parts[0]) if len(parts) == 1 else response.size
        more = _CLOSES if self._close_after else self._keeps
        if asked is not None and asked.stamp is not None:
            more += asked.stamp(asked, response)
        head = response.head(size, more)
        if not size or (asked is not None and asked.method == "HEAD"):
            self._transport.write(head)
        elif size <= _JOIN_BYTES:
            self._transport.write(b"".join((head, *parts)))
        else:
            self._transport.writelines([head, *(p for p in parts if len(p))])

    def _refuse(self, refusal: Refused) -> None:
        """Answer and close: after a malformed request, the start of the next one is unknown."""
        again = RETRY if refusal.status == 503 else ()
        answer = Refusal(refusal.status, refusal.reason, refusal.message, again)
        self._end(answer, self._head)

    def _end(self, refusal: Refusal, head: Head | None) -> None:
        """Answer, and read nothing more."""
        self._report(refusal, head)
        self._close_after = True
        self._current = None
        self._buffer.clear()
        self._release()
        self._head = self._body = self._chunks = None
        if self._transport is not None:
            self._write(refusal, head)
            if self._transport.can_write_eof():
                # Closing now would reset the connection, and a client that is still sending would not see the
                # answer. For a moment, what it sends is thrown away.
                self._lingering = True
                self.since = time.monotonic()
                self._transport.write_eof()
            else:
                self._transport.close()

    # the server's side

    def sweep(self, now: float) -> None:
        """Enforce the time limits on a head, a body, the next request, and a client that does not read."""
        waited, limits = now - self.since, self._limits
        if self._transport is None or (self._current is not None and not self._blocked):
            return
        if self._lingering:
            if waited > _LINGER_S:
                self._transport.abort()
        elif self._blocked or self._close_after:
            if waited > limits.send_s:
                self._transport.abort()
        elif self._head is not None:
            received = len(self._chunks.body) if self._chunks is not None else self._received
            if received - self._seen >= limits.body_rate * waited:
                self.since, self._seen = now, received
            elif waited > limits.body_s and self._skip:
                self._transport.abort()  # it has its answer
            elif waited > limits.body_s:
                self._refuse(
                    Refused(
                        408,
                        f"the body came slower than {limits.body_rate} bytes a second for "
                        f"{limits.body_s:g} s",
                        "slow",
                    )
                )
        elif self._buffer:
            if waited > limits.head_s:
                problem = f"the head did not arrive within {limits.head_s:g} s"
                self._refuse(Refused(408, problem, "slow"))
        elif waited > limits.idle_s:
            self._transport.close()

    def forget(self) -> None:
        """Route the next head anew even if it repeats: the caller's key may be gone."""
        self._last = None
        self.trusted = False
        if self._head is not None:
            self._head.route = None

    def finish(self) -> None:
        """The server drains: close once every request that has begun to arrive is answered.

        If none has, one may be on its way: for a moment it is still read, and answered as the last one.
        """
        self._drain_at = self._arrived
        if self._idle:
            asyncio.get_running_loop().call_later(_ON_ITS_WAY_S, self._finish_idle)

    def _finish_idle(self) -> None:
        if self._idle and self._transport is not None:
            self._close_after = True
            self._transport.close()

    @property
    def _idle(self) -> bool:
        """Whether every request that has begun to arrive is answered."""
        between = self._current is None and self._head is None
        return between and not self._buffer.lstrip(b"\r\n")

    def _is_drained(self) -> bool:
        """Between requests: whether the server drains, and the next request began to arrive after that."""
        if self._drain_at is None:
            return False
        unread = self._buffer.lstrip(b"\r\n")  # as _read_head does
        return not unread or self._arrived - len(unread) >= self._drain_at

    @property
    def idle_stranger(self) -> bool:
        """Whether no authorised request came on this connection, and none is being handled."""
        return not self.trusted and self._current is None and not self._aborted

    @property
    def owes(self) -> bool:
        """Whether a client waits: a request is arriving or running, or an answer is being sent."""
        if self._transport is None:
            return False
        arriving = self._head is not None or bool(self._buffer)
        return self._current is not None or arriving or self._transport.get_write_buffer_size() > 0

    @property
    def owes_later(self) -> bool:
        """Whether an answer has to be made or read before the connection can go on."""
        return self._current is not None or self._blocked

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()
