"""What fits a device's memory: learned from the batches that did not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

# Batches are tried whole again after that: what took the memory may have given it back.
_AGAIN_S: Final = 60.0


class Extent(msgspec.Struct, frozen=True):
    """Of a batch: rows that can be run apart, and bytes of inputs, at least one a row."""

    rows: int
    size: int


class Room:
    """Of one opened candidate. Counted in bytes: that a few large requests did not fit does not cut batches
    of small ones. `rows` is for people: the rows that still fitted of the last batch that was cut."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._again = 0.0
        self.rows = self.size = 0  # 0: anything so far

    def cut(self, batch: Extent) -> None:
        """A batch did not fit."""
        self.rows = -(-batch.rows // 2)
        self.size = batch.size * self.rows // batch.rows
        self._again = self._clock() + _AGAIN_S

    def takes(self, batch: Extent) -> bool:
        """Whether to try it whole."""
        return not 0 < self.size < batch.size or self._clock() > self._again

    def step(self, batch: Extent) -> int:
        """How many of its rows to run at once."""
        if not 0 < self.size < batch.size:
            return batch.rows
        return max(1, batch.rows * self.size // batch.size)

    def fitted(self, batch: Extent) -> None:
        """A batch that was tried whole did fit."""
        if batch.size > self.size:
            self.rows = self.size = 0
