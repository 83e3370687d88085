"""Turns: which of several models' batches run now, so that none starves and the cores are not overrun."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """Shared by the engines of a server.

    While fewer batches run than there are cores, any may start. Beyond that, and up to twice as many, only
    a model of which nothing runs: so a slow model with several workers never keeps a quick one waiting.
    Among those that wait, the model goes first that has had the least time, by its weight (start-time fair
    queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
    """

    def __init__(self, cores: int) -> None:
        self.usual = max(1, cores)
        self.most = 2 * self.usual
        self.running = 0
        self.reached = 0.0  # the time, by its weight, that the last to start had had
        self.lock = threading.Lock()
        self.waiting: list[Line] = []

    def line(self, weight: float = 1.0) -> Line:
        """A place for one more model."""
        return Line(self, weight)

    def may_start(self, line: Line) -> bool:
        """Under the lock."""
        if self.running < self.usual:
            return True
        return line.running == 0 and self.running < self.most

    def admit(self) -> None:
        """Start those that wait and may start. Under the lock."""
        while True:
            able = [line for line in self.waiting if self.may_start(line)]
            if not able:
                return
            line = min(able, key=lambda line: line.had)
            line.start()
            gate = line.gates.popleft()
            if not line.gates:
                self.waiting.remove(line)
            gate.release()


class Line:
    """One model's place among the turns. Its workers enter before a batch and leave after it."""

    def __init__(self, turns: Turns, weight: float) -> None:
        self._turns = turns
        self._weight = weight
        self.running = 0
        self.had = 0.0  # seconds run, divided by the weight
        self.gates: deque[threading.Lock] = deque()

    def start(self) -> None:
        """Under the lock."""
        self._turns.reached = max(self._turns.reached, self.had)
        self.running += 1
        self._turns.running += 1

    def enter(self) -> None:
        """Wait for this model's turn."""
        turns = self._turns
        with turns.lock:
            if self.running == 0 and not self.gates:
                # Time in which it asked for nothing is not saved up.
                self.had = max(self.had, turns.reached)
            if not self.gates and turns.may_start(self):
                self.start()
                return
            gate = threading.Lock()
            gate.acquire()
            self.gates.append(gate)
            if self not in turns.waiting:
                turns.waiting.append(self)
        gate.acquire()

    def leave(self, seconds: float) -> None:
        """A batch has run, for `seconds`."""
        turns = self._turns
        with turns.lock:
            self.had += seconds / self._weight
            self.running -= 1
            turns.running -= 1
            if turns.waiting:
                turns.admit()
