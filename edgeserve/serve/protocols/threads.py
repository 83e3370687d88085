"""Where long work on requests is done, so that the event loop does not wait for it."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import time_limit
from edgeserve.serve.engine.in_flight import InFlight
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Refusal, server_failed
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.process.heap import Trimmer

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Lane(enum.Enum):
    """Where long work is done: on the event loop, or on one of the threads."""

    LOOP = enum.auto()
    THREAD = enum.auto()
    WRITER = enum.auto()  # one thread for answers: two would keep Python's lock from the loop
    READER = enum.auto()  # one thread for large bodies and answers


class Turn:
    """The work that a request waits for while its body is read on a thread."""

    __slots__ = ("started",)

    def __init__(self) -> None:
        self.started = False

    def taking(self, work: Callable[[], _T]) -> Callable[[], _T]:
        """`work`, which notes that it has begun."""

        def begin() -> _T:
            self.started = True
            return work()

        return begin


class _ClientLeft(Exception):
    """No client waits for the work."""


class Threads:
    """Does work for requests. Owns the reader's and the writer's thread; lives on the event loop."""

    def __init__(self, flight: InFlight) -> None:
        self._flight = flight
        self._trimmer = Trimmer()
        self._executors = {
            Lane.WRITER: ThreadPoolExecutor(1, "edgeserve-answers"),
            Lane.READER: ThreadPoolExecutor(1, "edgeserve-json"),
        }

    def close(self) -> None:
        """Drop what waits to be read or written; blocks while something is."""
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)

    def do(
        self,
        where: Lane,
        work: Callable[[], _T],
        then: Callable[[_T], None],
        request: Request,
        failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Do `work`; `then` gets its result on the loop. If there is none, the request gets the error and
        `failed` the reason."""

        def finish(get: Callable[[], _T]) -> None:
            if not request.waits:
                failed("canceled")  # its client has left meanwhile
                return
            try:
                then(get())
            except EdgeServeError as error:
                failed("invalid")
                request.respond(failure(error))
            except BodyTooLarge as error:
                failed("invalid")
                request.respond(Refusal(413, "body_too_large", str(error)))
            except Exception:  # the work was on a thread: it has to be answered here
                log.exception("a request could not be handled")
                request.respond(server_failed())

        if where is Lane.LOOP:
            finish(work)
            return
        self._flight.count += 1

        def unless_left() -> _T:
            if not request.waits:
                raise _ClientLeft
            return work()

        def landed(done: asyncio.Future[_T]) -> None:
            self._flight.count -= 1
            if done.cancelled():  # the server ends
                return
            error = done.exception()
            finish(done.result)
            if error is not None:
                error.__traceback__ = None  # its frames hold the request, and the future it
            if where is Lane.READER:
                self._trimmer.soon()

        executor = self._executors.get(where)
        asyncio.get_running_loop().run_in_executor(executor, unless_left).add_done_callback(landed)


def shortened(decoded: InferRequest, model: ServedModel, took_s: float) -> InferRequest:
    """The request with what is left of its time limit after `took_s` seconds on a thread."""
    limit = time_limit(model.settings, decoded.timeout_s, decoded.priority)
    if not limit:
        return decoded
    left = limit - took_s
    return msgspec.structs.replace(decoded, timeout_s=left if left > 0 else -1.0)
