"""When a candidate that failed is tried again: pauses that grow, forgotten once it has served for long."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

# A candidate that did not open at start is seldom there a second later.
_PAUSES_AT_START: Final = 5
_JITTER: Final = 0.2


class Breaker:
    """Times are in seconds of any one clock. `due` is None while nothing is wrong.

    The n-th pause is `first * 2**n`, at most `longest`, give or take a fifth so that several candidates
    do not come back at the same moment. A candidate that fails again before it has served for `stable`
    waits longer than the time before: that keeps it from flapping.
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
        """It failed while serving, or when it was tried again. Returns when it is due."""
        if self._serving_since is not None and now - self._serving_since >= self._stable:
            self._pauses = 0
        self._serving_since = None
        pause = min(self._longest, self._first * 2.0 ** min(self._pauses, 60))
        self._pauses += 1
        self.due = now + pause * self._uniform(1 - _JITTER, 1 + _JITTER)
        return self.due

    def failed_at_start(self, now: float) -> float:
        self._pauses = max(self._pauses, _PAUSES_AT_START)
        return self.failed(now)

    def explained(self, times: int, now: float) -> None:
        """Its last failures are known not to be its own: they make no pause longer."""
        self._pauses = max(0, self._pauses - times)
        if self.due is not None:
            self.due = min(self.due, now + self._first * 2.0 ** min(self._pauses, 60))

    def served(self, now: float) -> None:
        """It serves now."""
        self._serving_since = now
        self.due = None

    def is_due(self, now: float) -> bool:
        """Whether nothing speaks against trying it."""
        return self.due is None or now >= self.due

    def give_up(self) -> None:
        """It will never open here."""
        self.due = None

    def hurry(self, now: float) -> None:
        """Something speaks for it: try at once."""
        if self.due is not None:
            self.due = min(self.due, now)

    def postpone(self, until: float) -> None:
        if self.due is not None:
            self.due = max(self.due, until)
