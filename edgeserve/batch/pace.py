"""How many rows share a call, and how many are read at a time: tried on the first rows of the run."""

from __future__ import annotations

import threading
from typing import Final

# Those that `bench` tries, too.
_SIZES: Final = (1, 4, 16)
# A size is tried for so long, and in so many calls; a larger one is not tried if a call would take too long.
_TRIAL_S: Final = 0.25
_TRIAL_CALLS: Final = 4
_LONGEST_CALL_S: Final = 2.0
# What a worker has at hand should take it so long, and fill no more memory than that.
_PORTION_S: Final = 0.2
_PORTION_BYTES: Final = 8 << 20
_PORTION_ROWS: Final = 4096


class RowPace:
    """Chooses the number of rows of a call, and of a portion. May be used from several threads."""

    def __init__(self, together: int, calls: int) -> None:
        """`together` is the most rows that may share a call, `calls` how many run at a time."""
        self._waiting = [n for n in _SIZES if n <= together] or [1]
        self._calls = calls
        self._rates: dict[int, float] = {}
        self._lock = threading.Lock()
        self._start(self._waiting.pop(0))
        self._row_bytes = 1.0
        self._row_s = 0.0

    def _start(self, size: int) -> None:
        self.size = size
        self._first = self._calls  # the first call of each session may compile
        self._seen = 0
        self._rows = 0
        self._seconds = 0.0

    def ran(self, size: int, rows: int, seconds: float) -> None:
        """A call of up to `size` rows that did not fail."""
        with self._lock:
            if size != self.size or not self._is_trying or rows < size:
                return
            if self._first:
                self._first -= 1
                if seconds < _LONGEST_CALL_S:
                    return
            self._seen += 1
            self._rows += rows
            self._seconds += seconds
            enough = (
                self._seconds >= self._calls * _TRIAL_S and self._seen >= _TRIAL_CALLS * self._calls
            )
            if not enough and seconds < _LONGEST_CALL_S:
                return
            self._rates[size] = self._rows / self._seconds
            self._next(seconds / size)

    @property
    def _is_trying(self) -> bool:
        return self.size not in self._rates

    def _next(self, row_s: float) -> None:
        while self._waiting:
            size = self._waiting.pop(0)
            if size * row_s <= _LONGEST_CALL_S:
                self._start(size)
                return
        self.size = max(self._rates, key=self._rates.__getitem__)

    def took(self, rows: int, seconds: float, nbytes: int) -> None:
        """A portion of so many rows, with inputs of `nbytes`, and what decoding, running and encoding it took."""
        if rows:
            with self._lock:
                self._row_s = seconds / rows
                self._row_bytes = nbytes / rows

    def too_large(self, size: int) -> None:
        """A call of `size` rows failed, each of which runs alone: from now on fewer share a call."""
        with self._lock:
            self._waiting = [n for n in self._waiting if n < size]
            self._rates = {n: rate for n, rate in self._rates.items() if n < size} or {1: 1.0}
            if self.size >= size:
                self.size = max(self._rates, key=self._rates.__getitem__)

    def alone(self) -> None:
        """From now on every row runs in a call of its own."""
        with self._lock:
            self._waiting = []
            self._rates = {1: 1.0}
            self.size = 1

    def portion(self) -> int:
        """How many rows to read next."""
        with self._lock:
            if not self._row_s:
                return max(self.size, self._waiting[-1] if self._waiting else 1)
            rows = min(
                _PORTION_S / self._row_s,
                _PORTION_BYTES / max(1.0, self._row_bytes),
                _PORTION_ROWS,
            )
            most = max(self.size, self._waiting[-1] if self._waiting else 1)
            return max(most, int(rows) // most * most)
