"""What is said about one model's requests: how many may wait, for how long, and what then happens."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from edgeserve.serve.engine.request import DeadlineExceeded, Pending

OnFull = Literal["reject", "displace"]
OnTimeout = Literal["reject", "delay"]


class LevelSettings(msgspec.Struct, frozen=True):
    """How the requests of one priority wait: as in EngineSettings. Those of a level with a `queue` of its own
    are not among those that the model's bounds."""

    queue: int | None = None
    timeout_s: float = 0.0
    own_timeouts: bool = True
    on_timeout: OnTimeout = "reject"


class EngineSettings(msgspec.Struct, frozen=True):
    """How one model's requests wait and run.

    `queue` bounds requests that wait or run; `on_full` displace gives a more important newcomer the place
    of the least important that waits. `timeout_s` is the deadline of a request that names none (0: none);
    without `own_timeouts` a request may only shorten it. `on_timeout` delay has a request whose time is over
    before it has started wait behind those of its priority whose time is not, instead of refusing it.
    `instances` is how many calls run at a time. `batching` False runs every request alone, `max_batch` (0: the
    model's), `preferred` and `delay_s` are those of BatchPolicy. There are `priorities` levels, of which a
    request that names none has `default_priority`; `levels` says for which of them other rules hold.
    `weight` is the model's share of the cores where several models are busy.
    """

    queue: int = 1024
    on_full: OnFull = "reject"
    timeout_s: float = 0.0
    own_timeouts: bool = True
    on_timeout: OnTimeout = "reject"
    instances: int = 1
    batching: bool = True
    max_batch: int = 0
    preferred: tuple[int, ...] = ()
    delay_s: float = 0.0
    priorities: int = 1
    default_priority: int = 1
    levels: dict[int, LevelSettings] = {}
    weight: float = 1.0

    def known(self, priority: int) -> int:
        """The priority of a request that asks for this one."""
        return priority if 0 < priority <= self.priorities else self.default_priority

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
        return any(rule.on_timeout == "delay" for rule in rules)


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
    if settings.of(priority).on_timeout == "delay":
        if limit < 0:
            request.overdue = True
        elif limit > 0:
            request.delay_after(limit, loop)
    elif limit < 0:
        request.settle(DeadlineExceeded("the request's time was over before it came"))
    elif limit > 0:
        request.expire_in(limit, loop)
