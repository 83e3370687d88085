"""The engine's rules for who waits and who goes, on a real chain: priorities, full queues, early ends."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import (
    DeadlineExceeded,
    Engine,
    EngineSettings,
    Outcome,
    QueueFull,
    time_limit,
)
from edgeserve.tensors import Tensors
from tests.serve.slow import MAX_BATCH
from tests.serve.test_engine import (
    BUSY,
    Call,
    assert_own_numbers,
    engine_of,
    keep_busy,
    slow_edge,
    some_rows,
)

__all__ = ["slow_edge"]


class Held:
    """The engine's chain, whose next calls wait until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self._chain = engine.chain
        self._gate = threading.Event()
        engine.chain = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self._chain, name)

    def run(self, inputs: Tensors) -> object:
        assert self._gate.wait(60)
        return self._chain.run(inputs)

    def let_go(self) -> None:
        self._gate.set()


class Prior(Call):
    """A call with a priority that notes when it was answered."""

    answered: list[str]

    def __init__(self, engine: Engine, name: str, priority: int, order: list[str]) -> None:
        self.x = some_rows(MAX_BATCH, 1)
        self.results: list[Outcome | EdgeServeError] = []
        self._called = asyncio.Event()
        self._name, self._order = name, order
        self.pending = engine.submit({"x": self.x}, MAX_BATCH, None, self._note, priority)

    def _note(self, result: Outcome | EdgeServeError) -> None:
        self._order.append(self._name)
        self._done(result)


async def started(call: Call) -> None:
    while not call.pending.started:  # noqa: ASYNC110 - a worker sets it
        await asyncio.sleep(0)


def test_the_important_go_first_and_unknown_priorities_are_the_default(slow_edge: Path) -> None:
    async def story() -> None:
        options = EngineSettings(priorities=3, default_priority=2)
        async with engine_of(slow_edge, options) as (engine, _):
            held = Held(engine)
            await started(Call(engine, some_rows(MAX_BATCH)))
            order: list[str] = []
            asked = (("low", 3), ("none", 0), ("odd", 9), ("high", 1), ("middle", 2))
            calls = [Prior(engine, name, priority, order) for name, priority in asked]
            held.let_go()
            for call in calls:
                assert_own_numbers(call, await call.outcome())
            assert order == ["high", "none", "odd", "middle", "low"]

    asyncio.run(story())


def test_a_full_queue_gives_the_place_of_the_unimportant_to_the_important(slow_edge: Path) -> None:
    async def story() -> None:
        options = EngineSettings(queue=4, on_full="displace", priorities=3, default_priority=2)
        async with engine_of(slow_edge, options) as (engine, _):
            held = Held(engine)
            order: list[str] = []
            first = Prior(engine, "first", 2, order)
            await started(first)
            lows = [Prior(engine, f"low {i}", 3, order) for i in range(3)]
            high = Prior(engine, "high", 1, order)
            assert isinstance(lows[2].results[0], QueueFull)
            middle = Prior(engine, "middle", 0, order)
            assert isinstance(lows[1].results[0], QueueFull)
            with pytest.raises(QueueFull) as caught:
                Prior(engine, "another low", 3, order)
            assert caught.value.retry_s > 0
            held.let_go()
            for call in (first, high, middle, lows[0]):
                assert_own_numbers(call, await call.outcome())
            assert order == ["low 2", "low 1", "first", "high", "middle", "low 0"]
            assert engine.pending == 0

    asyncio.run(story())


def test_expired_and_cancelled_requests_make_room_at_once(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, EngineSettings(queue=BUSY + 2)) as (engine, batches):
            held = Held(engine)
            keep_busy(engine)
            late = Call(engine, some_rows(1), 1e-4)
            gone = Call(engine, some_rows(1))
            with pytest.raises(QueueFull):
                Call(engine, some_rows(1))
            engine.cancel(gone.pending)
            assert isinstance(await late.result(), DeadlineExceeded)
            assert late.pending.inputs == gone.pending.inputs == {}
            held.let_go()
            two = [Call(engine, some_rows(1, seed)) for seed in range(2)]
            for call in two:
                assert_own_numbers(call, await call.outcome())
            assert sum(batches.rows) == BUSY * MAX_BATCH + 2

    asyncio.run(story())


def test_a_request_whose_time_was_over_before_it_came_is_not_queued(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, batches):
            call = Call(engine, some_rows(1), -0.5)
            assert isinstance(call.results[0], DeadlineExceeded)
            assert engine.pending == 0
            assert await engine.drain(1)
            assert batches.rows == []

    asyncio.run(story())


def test_a_delay_waits_for_company(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, EngineSettings(delay_s=5.0)) as (engine, batches):
            calls = []
            for seed in range(MAX_BATCH):
                calls.append(Call(engine, some_rows(1, seed)))
                await asyncio.sleep(0)
            for call in calls:
                assert_own_numbers(call, await call.outcome())
            assert batches.rows == [MAX_BATCH]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("server", "own", "asked", "limit"),
    [
        (0.0, True, None, 0.0),
        (2.0, True, None, 2.0),
        (2.0, True, 5.0, 5.0),
        (2.0, True, 0.0, 0.0),
        (2.0, False, 5.0, 2.0),
        (2.0, False, 1.0, 1.0),
        (2.0, False, 0.0, 2.0),
        (2.0, False, -1.0, -1.0),
        (0.0, False, 5.0, 5.0),
    ],
)
def test_whose_time_limit_counts(
    server: float, own: bool, asked: float | None, limit: float
) -> None:
    assert time_limit(EngineSettings(timeout_s=server, own_timeouts=own), asked) == limit
