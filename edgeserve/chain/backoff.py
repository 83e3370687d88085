"""The back-off after a device failure: when a failed candidate is tried again.

Pauses double with each failure, and start over once the candidate has served for long enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

# A candidate that did not open at start-up rarely opens a second later.
_PAUSES_AT_START: Final = 5
_JITTER: Final = 0.2


class Backoff:
    """When one candidate is tried again. Times are in seconds of any one clock; `due` is None while the
    candidate is not waiting.

    The n-th pause is `first * 2**n`, up to `longest`, plus or minus 20 % so that several candidates do not
    come back at the same moment. A candidate that fails again before it has served for `stable` seconds
    waits longer than before, which prevents flapping.
    """

    def __init__(
        self,
        first: float,
        longest: float,
        stable: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._longest = longest
        self._stable = stable
        self._uniform = uniform
        self._pauses = 0
        self._serving_since: float | None = None
        self.due: float | None = None

    def failed(self, now: float) -> float:
        """Record a failure while serving or on a new attempt. Returns the time of the next attempt."""
        if self._serving_since is not None and now - self._serving_since >= self._stable:
            self._pauses = 0
        self._serving_since = None
        pause = min(self._longest, self._first * 2.0 ** min(self._pauses, 60))
        self._pauses += 1
        self.due = now + pause * self._uniform(1 - _JITTER, 1 + _JITTER)
        return self.due

    def failed_at_start(self, now: float) -> float:
        """Record a failure at start-up, after which the first pause is longer."""
        self._pauses = max(self._pauses, _PAUSES_AT_START)
        return self.failed(now)

    def explained(self, times: int, now: float) -> None:
        """The last `times` failures were caused by inputs, not by the device: they no longer count."""
        self._pauses = max(0, self._pauses - times)
        if self.due is not None:
            self.due = min(self.due, now + self._first * 2.0 ** min(self._pauses, 60))

    def served(self, now: float) -> None:
        """The candidate serves now."""
        self._serving_since = now
        self.due = None

    def is_due(self, now: float) -> bool:
        """Whether it may be tried now."""
        return self.due is None or now >= self.due

    def give_up(self) -> None:
        """Stop trying: it cannot open here."""
        self.due = None

    def hurry(self, now: float) -> None:
        """Try at once: its device opened for another model."""
        if self.due is not None:
            self.due = min(self.due, now)

    def postpone(self, until: float) -> None:
        """Try no earlier than `until`."""
        if self.due is not None:
            self.due = max(self.due, until)
