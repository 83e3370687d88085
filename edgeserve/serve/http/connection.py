"""One client connection: requests to the router one at a time, answers out in order, and its end."""

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
# A client that has closed its side gets the answer to what is begun within that; the rest is not run.
_LEFT_S: Final = 0.05
# While a server drains, requests that come within that on an idle connection are answered: they were on their way.
_ON_ITS_WAY_S: Final = 0.2


class Server(Owner, Protocol):
    """What a connection needs of its server."""

    def connected(self, connection: Connection) -> str | None: ...

    def disconnected(self, connection: Connection) -> None: ...


class Connection(Reading):
    """Answers what was read, and ends: when it is told to, the client does, or something takes too long."""

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
        # Those that give up close their side, and so do a few that wait for the answer: what has begun is
        # answered, what has not is not run, as nginx does with what it has passed on.
        self._eof = True
        if self._current is not None:
            self._look_for_begin(self._current)
        return self.owes_later

    def _look_for_begin(self, request: Request) -> None:
        asyncio.get_running_loop().call_later(_LEFT_S, self._give_up, request)

    def _give_up(self, request: Request) -> None:
        """Take back what a client that has closed its side asked for, unless it has begun."""
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
        self._write(response, head_only=request.head.method == "HEAD")
        if self._close_after:
            self._buffer.clear()  # nothing behind the last answer is run
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

    def _write(self, response: Response, *, head_only: bool = False) -> None:
        assert self._transport is not None
        parts = response.parts
        size = len(parts[0]) if len(parts) == 1 else response.size
        head = response.head(size, _CLOSES if self._close_after else self._keeps)
        if head_only or not size:
            self._transport.write(head)
        elif size <= _JOIN_BYTES:
            self._transport.write(b"".join((head, *parts)))
        else:
            self._transport.writelines([head, *(p for p in parts if len(p))])

    def _refuse(self, refusal: Refused) -> None:
        """Answer and close: after a malformed request nobody knows where the next one starts."""
        again = RETRY if refusal.status == 503 else ()
        answer = Refusal(refusal.status, refusal.reason, refusal.message, again)
        self._end(answer, self._head)

    def _end(self, refusal: Refusal, head: Head | None) -> None:
        """Answer, and take nothing more."""
        self._report(refusal, head)
        self._close_after = True
        self._current = None
        self._buffer.clear()
        self._release()
        self._head = self._body = self._chunks = None
        if self._transport is not None:
            self._write(refusal, head_only=head is not None and head.method == "HEAD")
            if self._transport.can_write_eof():
                # Closing now would reset the connection under a client that is still sending, which
                # would then not see the answer: what it sends is thrown away for a moment.
                self._lingering = True
                self.since = time.monotonic()
                self._transport.write_eof()
            else:
                self._transport.close()

    # the server's side

    def sweep(self, now: float) -> None:
        """Close what has been waited for too long: a head, a body, the next request, a reader."""
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
        """Heads that come again are routed again: the leave to ask for that may have ended."""
        self._last = None
        self.trusted = False
        if self._head is not None:
            self._head.route = None

    def finish(self) -> None:
        """The server drains: close once every request that has begun to arrive is answered.

        Where none has, one may be on its way: for a moment it is still taken, and answered as the last one.
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
        """Nothing of a request has come that was not answered."""
        between = self._current is None and self._head is None
        return between and not self._buffer.lstrip(b"\r\n")

    def _is_drained(self) -> bool:
        """Between requests: whether the server drains and the next had not begun to arrive by then."""
        if self._drain_at is None:
            return False
        unread = self._buffer.lstrip(b"\r\n")  # as _read_head does
        return not unread or self._arrived - len(unread) >= self._drain_at

    @property
    def idle_stranger(self) -> bool:
        """Whether nobody who has leave for anything asked for something here, and nothing is handled."""
        return not self.trusted and self._current is None and not self._aborted

    @property
    def owes(self) -> bool:
        """Whether somebody waits here: a request is arriving or running, or an answer being sent."""
        if self._transport is None:
            return False
        arriving = self._head is not None or bool(self._buffer)
        return self._current is not None or arriving or self._transport.get_write_buffer_size() > 0

    @property
    def owes_later(self) -> bool:
        """Whether something has to happen before what was sent can be answered."""
        return self._current is not None or self._blocked

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()
