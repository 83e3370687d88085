"""What goes through the engine: a request waiting for its answer, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.tensors import Tensors

# So many batches are kept by those who count them, to be counted in one go.
UNCOUNTED: Final = 32


class QueueFull(EnvironmentProblem):
    """So many requests wait or run already that this one would only wait longer. `retry_s` is about how
    long those that wait take."""

    retry_s: float = 1.0


class ShuttingDown(EnvironmentProblem):
    """The server drains: what is in flight is finished, nothing new is taken."""


class DeadlineExceeded(EnvironmentProblem):
    """The request's time was over before it was answered. One not started is not run."""


class Outcome:
    """The outputs of one request, who computed them, and how long it took (seconds)."""

    __slots__ = ("batch", "candidate", "compute_s", "outputs", "queue_s")

    def __init__(
        self, outputs: Tensors, candidate: Candidate, batch: int, queue_s: float, compute_s: float
    ) -> None:
        self.outputs = outputs
        self.candidate = candidate
        self.batch = batch
        self.queue_s = queue_s
        self.compute_s = compute_s


class BatchTimes(msgspec.Struct, frozen=True, gc=False):
    """One batch that ran, in seconds: how long each of its requests had waited, joining their inputs,
    the model, splitting the outputs."""

    rows: int
    queue_s: list[float]
    input_s: float
    infer_s: float
    output_s: float

    @property
    def compute_s(self) -> float:
        return self.input_s + self.infer_s + self.output_s


Done = Callable[[Outcome | EdgeServeError], None]


class Holder(Protocol):
    """Who has a request that waits: told when it is settled before it was run, or overdue."""

    def forget(self, request: Pending) -> None: ...

    def delay(self, request: Pending) -> None: ...


class Pending:
    """A request in the engine. All but `inputs`, `rows`, `signature` and `started` belongs to the event loop.

    `done` is called once, on the loop. `settled` is also read by workers: a request settled early (its
    client left, its time is over) is not run. `started` is set by a worker, under its queue's lock.
    `level` is the priority, 0 the highest. `overdue`: its time is over, and it goes on waiting, behind those
    of its level whose time is not.
    """

    __slots__ = (
        "arrived", "done", "holder", "inputs", "level", "overdue", "rows", "settled", "signature",
        "started", "timer",
    )  # fmt: skip

    def __init__(self, inputs: Tensors, rows: int, done: Done, arrived: float) -> None:
        self.inputs = inputs
        self.rows = rows
        self.done = done
        self.arrived = arrived
        self.signature: object = None
        self.level = 0
        self.overdue = False
        self.settled = False
        self.started = False
        self.holder: Holder | None = None
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, result: Outcome | EdgeServeError) -> bool:
        """Answer, unless that has happened already."""
        if self.settled:
            return False
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()
        self.done(result)
        return True

    def expire_in(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = loop.call_later(seconds, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        if not self.settled:
            self._withdraw()
            self.done(DeadlineExceeded(f"the request was not answered within {seconds:g} s"))

    def delay_after(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = loop.call_later(seconds, self._delay)

    def _delay(self) -> None:
        if not self.settled:
            self.overdue = True
            if self.holder is not None:
                self.holder.delay(self)

    def cancel(self) -> bool:
        """Its client is gone: it is not answered and, unless it has started, not run."""
        if self.settled:
            return False
        self._withdraw()
        return True

    def displace(self, error: EdgeServeError) -> None:
        """It gives way to a more important one."""
        if not self.settled:
            self._withdraw()
            self.done(error)

    def _withdraw(self) -> None:
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()
        if self.holder is not None:
            self.holder.forget(self)
