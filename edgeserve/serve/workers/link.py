"""Requests and answers between two processes, both ways over one socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Self, TypeVar

import msgspec

from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.serve.workers.messages import Call, Order, Request, Return
from edgeserve.wire.failures import Failure

log = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct("<I")
_MOST: Final = 256 << 20
_ENCODER: Final = msgspec.msgpack.Encoder()
_MESSAGE: Final = msgspec.msgpack.Decoder(Call | Return)
_T = TypeVar("_T")
Handle = Callable[[Request], Awaitable[object]]


class LinkLost(EnvironmentProblem):
    """The process at the other end is gone."""

    def __init__(self) -> None:
        super().__init__("the process that was asked has ended")


class NoAnswer(EnvironmentProblem):
    """The process at the other end did not answer in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the process that was asked did not answer within {limit_s:g} s")


class WorkerLink:
    """One end, on an event loop; owns its socket and the tasks that answer requests.

    `handle` answers what the other end asks: it returns what msgspec can encode, or raises EdgeServeError.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handle
    ) -> None:
        self.handle = handle
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self.reading = asyncio.ensure_future(self._read())

    @classmethod
    async def over(cls, end: socket.socket, handle: Handle) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=end), handle)

    async def ask(self, request: Request, kind: type[_T], limit_s: float) -> _T:
        """What the other end answers. Raises LinkLost, NoAnswer, and what it raised."""
        number = next(self._numbers)
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(Call(number, request))
            async with asyncio.timeout(limit_s):
                body = await future
        except TimeoutError:
            raise NoAnswer(limit_s) from None
        finally:
            del self._waiting[number]
        return msgspec.msgpack.decode(body, type=kind)

    def tell(self, request: Request) -> None:
        """Send a request that needs no answer."""
        with contextlib.suppress(LinkLost):
            self._send(Call(0, request))

    def _send(self, message: Call | Return) -> None:
        if self._ended:
            raise LinkLost
        data = _ENCODER.encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def _read(self) -> None:
        """Read messages until the other end is gone."""
        try:
            while True:
                (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if size > _MOST:
                    log.error("message refused: %d bytes; the limit is %d", size, _MOST)
                    return
                self._take(_MESSAGE.decode(await self._reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except msgspec.MsgspecError:
            log.exception("a message cannot be read")
        finally:
            self._ended = True
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(LinkLost())

    def _take(self, message: Call | Return) -> None:
        if isinstance(message, Call):
            task = asyncio.ensure_future(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._waiting.get(message.number)
        if future is None or future.done():
            return
        if message.failure is not None:
            future.set_exception(message.failure.error())
        else:
            future.set_result(msgspec.Raw(message.body).copy())

    async def _answer(self, call: Call) -> None:
        failure, answer = None, None
        try:
            answer = await self.handle(call.request)
        except EdgeServeError as error:
            failure = Failure.of(error)
        except Exception as error:
            log.exception("a request of another process failed")
            failure = Failure("EnvironmentProblem", "the server failed", type(error).__name__)
        if call.number:
            body = msgspec.Raw(_ENCODER.encode(answer))
            with contextlib.suppress(LinkLost):
                self._send(Return(call.number, body, failure))

    async def close(self) -> None:
        """Send what is queued, then close; requests still being answered are dropped."""
        for task in self._tasks:
            task.cancel()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self.reading.cancel()
        await asyncio.wait([self.reading])


def send_order(end: socket.socket, order: Order) -> None:
    """Send the order, the first message on a socket. Blocks."""
    data = _ENCODER.encode(order)
    end.sendall(_LENGTH.pack(len(data)) + data)


def receive_order(end: socket.socket) -> Order:
    """The first message on a socket. Blocks. Raises LinkLost."""
    (size,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return msgspec.msgpack.decode(_exactly(end, size), type=Order)


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise LinkLost
        data += more
    return data
