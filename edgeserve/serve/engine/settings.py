"""The settings that the engine of one model needs, and the deadlines that follow from them.

Their names are those of the settings (edgeserve.serve.settings), which declare types, defaults and bounds.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from edgeserve.serve.engine.request import DeadlineExceeded, Pending


class LevelSettings(msgspec.Struct, frozen=True):
    """How the requests of one priority wait: as in EngineSettings. Those of a level with a `queue` of its own
    are not among those that the model's bounds."""

    queue: int | None
    timeout_s: float
    own_timeouts: bool
    timeout_action: Literal["reject", "delay"]


class EngineSettings(msgspec.Struct, frozen=True):
    """How one model's requests wait and run.

    `queue` bounds requests that wait or run; `queue_policy` displace gives a more important newcomer the place
    of the least important that waits. `timeout_s` is the deadline of a request that names none (0: none);
    without `own_timeouts` a request may only shorten it. `timeout_action` delay has a request whose time is over
    before it has started wait behind those of its priority whose time is not, instead of refusing it.
    `instances` is how many calls run at a time. `batching` False runs every request alone, `max_batch` (0: the
    model's), `preferred_batches` and `batch_delay_s` are those of BatchPolicy. There are `priority_levels` levels, of which a
    request that names none has `default_priority`; `levels` says for which of them other rules hold.
    `weight` is the model's share of the cores where several models are busy.
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
        """The priority of a request that asks for this one."""
        return priority if 0 < priority <= self.priority_levels else self.default_priority

    def of(self, priority: int) -> EngineSettings | LevelSettings:
        """What holds for a request that asks for this priority."""
        if not self.levels:
            return self
        return self.levels.get(self.known(priority), self)

    @property
    def apart(self) -> dict[int, int]:
        """How many requests may wait or run of the priorities that have a queue of their own."""
        return {p: own.queue for p, own in self.levels.items() if own.queue is not None}

    @property
    def delays(self) -> bool:
        """Whether a request's time may be over without an end to its waiting."""
        rules: list[EngineSettings | LevelSettings] = [self, *self.levels.values()]
        return any(rule.timeout_action == "delay" for rule in rules)


def time_limit(settings: EngineSettings, timeout_s: float | None, priority: int = 0) -> float:
    """Seconds a request may take: 0 is any time, negative none at all."""
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
    """Have a request wait as long as it may. One whose time is over already is settled, or overdue."""
    limit = time_limit(settings, timeout_s, priority)
    if settings.of(priority).timeout_action == "delay":
        if limit < 0:
            request.overdue = True
        elif limit > 0:
            request.delay_after(limit, loop)
    elif limit < 0:
        request.settle(DeadlineExceeded("the request's time was over before it came"))
    elif limit > 0:
        request.expire_in(limit, loop)
