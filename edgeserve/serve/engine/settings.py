"""The settings that the engine of one model needs, and the deadlines that follow from them.

Their names are those of the settings (edgeserve.serve.settings), which declare types, defaults and bounds.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from edgeserve.serve.engine.request import DeadlineExceeded, Pending


class LevelSettings(msgspec.Struct, frozen=True):
    """How the requests of one priority wait, as in EngineSettings. If `queue` is set, they are counted apart from
    the model's other requests."""

    queue: int | None
    timeout_s: float
    own_timeouts: bool
    timeout_action: Literal["reject", "delay"]


class EngineSettings(msgspec.Struct, frozen=True):
    """How one model's requests wait and run.

    `queue` is the maximum of queued and running requests. If it is full, `queue_policy` displace drops the least
    important queued request for a more important one. `timeout_s` is the deadline of a request that sets none
    (0: none); without `own_timeouts` a request can only shorten it. With `timeout_action` delay, a request whose
    deadline has passed moves behind the others of its priority instead of failing. `instances` is the maximum of
    concurrent calls. `max_batch` (0: the model's), `preferred_batches` and `batch_delay_s` are those of
    BatchPolicy. `levels` has the rules of priorities that differ from the model's; 1 is the highest of
    `priority_levels`.
    """

    queue: int
    queue_policy: Literal["reject", "displace"]
    timeout_s: float
    own_timeouts: bool
    timeout_action: Literal["reject", "delay"]
    instances: int
    batching: bool
    max_batch: int
    preferred_batches: tuple[int, ...]
    batch_delay_s: float
    priority_levels: int
    default_priority: int
    levels: dict[int, LevelSettings]
    weight: float

    def known(self, priority: int) -> int:
        """The priority of a request that asks for this one: the default for unknown ones."""
        return priority if 0 < priority <= self.priority_levels else self.default_priority

    def of(self, priority: int) -> EngineSettings | LevelSettings:
        """The rules of a request that asks for this priority."""
        if not self.levels:
            return self
        return self.levels.get(self.known(priority), self)

    @property
    def apart(self) -> dict[int, int]:
        """The queue of each priority that has one of its own."""
        return {p: own.queue for p, own in self.levels.items() if own.queue is not None}

    @property
    def delays(self) -> bool:
        """Whether a request may stay queued after its deadline."""
        rules: list[EngineSettings | LevelSettings] = [self, *self.levels.values()]
        return any(rule.timeout_action == "delay" for rule in rules)


def time_limit(settings: EngineSettings, timeout_s: float | None, priority: int = 0) -> float:
    """Seconds a request may take. 0: no deadline; negative: its deadline has passed."""
    rules = settings.of(priority)
    if timeout_s is None:
        return rules.timeout_s
    if rules.own_timeouts or not rules.timeout_s:
        return timeout_s
    return min(timeout_s or rules.timeout_s, rules.timeout_s)


def set_clock(
    request: Pending,
    settings: EngineSettings,
    timeout_s: float | None,
    priority: int,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Start a request's deadline. If it has passed already, the request fails or is overdue."""
    limit = time_limit(settings, timeout_s, priority)
    if settings.of(priority).timeout_action == "delay":
        if limit < 0:
            request.overdue = True
        elif limit > 0:
            request.delay_after(limit, loop)
    elif limit < 0:
        request.settle(DeadlineExceeded("the request's deadline had already passed"))
    elif limit > 0:
        request.expire_in(limit, loop)
