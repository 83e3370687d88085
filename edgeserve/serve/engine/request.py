"""What goes through the engine: a request waiting for its answer, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.tensors import Tensors


class QueueFull(EnvironmentProblem):
    """So many requests wait or run already that this one would only wait longer."""


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


class Pending:
    """A request in the engine. Everything but `inputs`, `rows` and `signature` belongs to the event loop.

    `done` is called once, on the loop. `settled` is also read by workers: a request settled early (its
    client left, its time is over) is not run.
    """

    __slots__ = ("arrived", "done", "inputs", "rows", "settled", "signature", "timer")

    def __init__(
        self, inputs: Tensors, rows: int, signature: object, done: Done, arrived: float
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.signature = signature
        self.done = done
        self.arrived = arrived
        self.settled = False
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
