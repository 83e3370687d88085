"""Load on an HTTP server from one event loop: every answer is compared with the number it should hold.

Requests are encoded beforehand and differ, so that an answer given to the wrong request is found. What
comes back is compared as bytes with an answer whose numbers were checked before, which costs little:
the generator must not be slower than the server it measures. Used by serving.py and overload of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def document_or_message(body: bytes) -> Any:
    """The JSON document that it is; the bytes of anything else."""
    return json.loads(body) if body[:1] in (b"{", b"[") else body


@dataclass
class Question:
    """A request as it goes over the wire, and the numbers that must come back."""

    wire: bytes
    expected: np.ndarray
    numbers: Callable[[Any], Any]  # where they are in what `parse` makes of the answer
    marker: bytes = b""  # what precedes it (an id) may differ from answer to answer
    tolerance: float = 1e-5  # absolute
    parse: Callable[[bytes], Any] = document_or_message
    checked: bytes | None = None

    def is_answered_by(self, body: bytes) -> bool:
        tail = body[body.find(self.marker) :] if self.marker else body
        if tail == self.checked:
            return True
        try:
            got = np.ravel(self.numbers(self.parse(body)))
        except (ValueError, KeyError, TypeError, IndexError):
            return False
        if got.shape != self.expected.shape or not np.allclose(
            got, self.expected, rtol=1e-3, atol=self.tolerance
        ):
            return False
        self.checked = tail
        return True


@dataclass
class Load:
    """What came of it. Latencies in seconds, of answers that were right; `busy` is the generator's share
    of its core."""

    requests: int = 0
    wrong: int = 0
    elapsed_s: float = 0.0
    busy: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return (self.requests - self.wrong) / self.elapsed_s

    def add(self, other: Load) -> None:
        total = self.elapsed_s + other.elapsed_s
        self.busy = (self.busy * self.elapsed_s + other.busy * other.elapsed_s) / total
        self.requests += other.requests
        self.wrong += other.wrong
        self.elapsed_s = total
        self.latencies += other.latencies

    def percentile_ms(self, share: float) -> float:
        return 1000 * float(np.percentile(self.latencies, 100 * share)) if self.latencies else 0.0


class _Connection(asyncio.Protocol):
    """Sends one question at a time; `idle` is called when its answer is there."""

    def __init__(self, load: Load, idle: Callable[[_Connection], None]) -> None:
        self._load, self._idle = load, idle
        self._buffer = b""
        self._question: Question | None = None
        self._began = 0.0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, question: Question, began: float) -> None:
        self._question, self._began = question, began
        self._transport.write(question.wire)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self._buffer = data
            return
        self._buffer = b""
        question, load = self._question, self._load
        if question is None:  # the answer to nothing
            load.wrong += 1
            return
        self._question = None
        load.requests += 1
        if data.startswith(b"HTTP/1.1 200") and question.is_answered_by(data[end + 4 :]):
            load.latencies.append(time.perf_counter() - self._began)
        else:
            load.wrong += 1
        self._idle(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._question is not None:
            self._load.requests += 1
            self._load.wrong += 1

    def close(self) -> None:
        self._question = None
        self._transport.close()


def closed_loop(port: int, questions: Sequence[Question], connections: int, seconds: float) -> Load:
    """As many requests as `connections` callers get answered who each wait for one."""

    async def run() -> Load:
        load, turn = Load(), 0
        end = time.perf_counter() + seconds

        def idle(connection: _Connection) -> None:
            nonlocal turn
            now = time.perf_counter()
            if now < end and not connection.closed:
                turn += 1
                connection.ask(questions[turn % len(questions)], now)

        opened = await _open(port, connections, load, idle)
        cpu, began = time.process_time(), time.perf_counter()
        for connection in opened:
            idle(connection)
        await asyncio.sleep(seconds)
        load.elapsed_s = time.perf_counter() - began
        load.busy = (time.process_time() - cpu) / load.elapsed_s
        await asyncio.sleep(0.1)
        for connection in opened:
            connection.close()
        return load

    return uvloop.run(run())


def open_loop(
    port: int, questions: Sequence[Question], rate: float, connections: int, seconds: float
) -> Load:
    """`rate` requests a second whatever the server does. A request's time counts from when it was due,
    so one that waits for a free connection is late."""

    async def run() -> Load:
        load, free = Load(), deque[_Connection]()
        waiting: deque[tuple[Question, float]] = deque()

        def idle(connection: _Connection) -> None:
            if waiting:
                connection.ask(*waiting.popleft())
            else:
                free.append(connection)

        free.extend(await _open(port, connections, load, idle))
        opened = list(free)
        cpu, began = time.process_time(), time.perf_counter()
        for number in range(int(rate * seconds)):
            due = began + number / rate
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            waiting.append((questions[number % len(questions)], due))
            if free:
                idle(free.popleft())
        load.elapsed_s = time.perf_counter() - began
        load.busy = (time.process_time() - cpu) / load.elapsed_s
        deadline = time.perf_counter() + 10
        # An event would cost each request.
        while len(free) < connections and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        load.wrong += len(waiting)
        load.requests += len(waiting)
        for connection in opened:
            connection.close()
        return load

    return uvloop.run(run())


def grpc_loop(port: int, questions: Sequence[Question], connections: int, seconds: float) -> Load:
    """`connections` calls at a time on one channel, each followed by the next."""
    import grpc

    load, done = Load(), threading.Semaphore(0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        end = time.perf_counter() + seconds
        turns = iter(range(1 << 62))

        def ask() -> None:
            began = time.perf_counter()
            if began >= end:
                done.release()
                return
            question = questions[next(turns) % len(questions)]
            call.future(question.wire, timeout=30).add_done_callback(
                lambda answer: told(question, began, answer)
            )

        def told(question: Question, began: float, answer: Any) -> None:
            load.requests += 1
            if answer.exception() is None and question.is_answered_by(answer.result()):
                load.latencies.append(time.perf_counter() - began)
            else:
                load.wrong += 1
            ask()

        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(connections):
            ask()
        for _ in range(connections):
            done.acquire()
        load.elapsed_s = time.perf_counter() - began
        load.busy = (time.process_time() - cpu) / load.elapsed_s
    return load


async def _open(
    port: int, connections: int, load: Load, idle: Callable[[_Connection], None]
) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    opened = []
    for _ in range(connections):
        _, connection = await loop.create_connection(
            lambda: _Connection(load, idle), "127.0.0.1", port
        )
        opened.append(connection)
    return opened
