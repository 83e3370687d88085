"""How many rows share a call, and how many are read at a time: tried on the first rows of the run."""

from __future__ import annotations

import statistics
import threading
from typing import Final

# Those that `bench` tries, too. They take turns, so that a busy moment of the machine hits all alike.
_SIZES: Final = (1, 4, 16)
# Each size is tried for at least _TRIAL_S and _TRIAL_CALLS; a size whose calls take over _LONGEST_CALL_S is left out.
_TRIAL_S: Final = 0.25
_TRIAL_CALLS: Final = 5
_LONGEST_CALL_S: Final = 2.0
# What a worker has at hand should take it so long, and fill no more memory than that.
_PORTION_S: Final = 0.2
_PORTION_BYTES: Final = 8 << 20
_PORTION_ROWS: Final = 4096


class RowPace:
    """Chooses the number of rows of a call, and of a portion. May be used from several threads."""

    def __init__(self, together: int, calls: int) -> None:
        """`together` is the most rows that may share a call, `calls` how many run at a time."""
        self._lock = threading.Lock()
        self._calls = calls
        self._tried = {n: _Trial() for n in _SIZES if n <= together} or {1: _Trial()}
        self._row_bytes = 1.0
        self._row_s = 0.0
        self._trying = True
        # How many rows share the next call.
        self.size = min(self._tried)

    def ran(self, size: int, rows: int, seconds: float) -> None:
        """A call of up to `size` rows that did not fail."""
        if self._is_settled():  # without the lock: this is after every call
            return
        with self._lock:
            trial = self._tried.get(size)
            if trial is None or self._is_settled() or rows < size:
                return
            trial.calls += 1
            if trial.calls > self._calls or seconds > _LONGEST_CALL_S:  # the first may compile
                trial.seconds += seconds
                trial.of_a_row.append(seconds / size)
            self._choose()

    def _is_settled(self) -> bool:
        return not self._trying

    def _choose(self) -> None:
        """The size that was tried least; the fastest, once all are tried enough."""
        known = [min(t.of_a_row) for t in self._tried.values() if t.of_a_row]
        waiting = [
            n
            for n, t in self._tried.items()
            if not t.is_enough(self._calls)
            and (t.calls or not known or n * min(known) <= _LONGEST_CALL_S)
        ]
        if waiting:
            self.size = min(waiting, key=lambda n: (self._tried[n].seconds, n))
            return
        self._trying = False
        tried = {n: t for n, t in self._tried.items() if t.of_a_row}
        self.size = min(tried, key=lambda n: statistics.median(tried[n].of_a_row))

    def took(self, rows: int, seconds: float, nbytes: int) -> None:
        """Notes a portion of `rows` rows with inputs of `nbytes`: decoding and running it took `seconds`."""
        if rows:
            with self._lock:
                self._row_s = seconds / rows
                self._row_bytes = nbytes / rows

    def too_large(self, size: int) -> None:
        """A call of `size` rows failed, each of which runs alone: from now on fewer share a call."""
        with self._lock:
            self._tried = {n: t for n, t in self._tried.items() if n < size} or {1: _Trial()}
            if self.size not in self._tried:
                self.size = max(self._tried)
                self._trying = self._trying and len(self._tried) > 1

    def alone(self) -> None:
        """From now on every row runs in a call of its own."""
        with self._lock:
            self._tried, self._trying, self.size = {1: _Trial()}, False, 1

    def portion(self) -> int:
        """How many rows to read next."""
        with self._lock:
            whole = max(self._tried) if self._trying else self.size
            if not self._row_s:
                return whole
            rows = min(
                _PORTION_S / self._row_s,
                _PORTION_BYTES / max(1.0, self._row_bytes),
                _PORTION_ROWS,
            )
            return max(1, int(rows) // whole) * whole


class _Trial:
    """What calls of one size took."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.of_a_row: list[float] = []

    def is_enough(self, calls: int) -> bool:
        """Of a size whose calls run `calls` at a time."""
        if self.seconds < calls * _TRIAL_S and len(self.of_a_row) < 1000:
            return False
        return len(self.of_a_row) >= _TRIAL_CALLS or self.seconds > _LONGEST_CALL_S
