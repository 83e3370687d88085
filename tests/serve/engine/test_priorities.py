"""The engine's rules for who waits and who goes, on a real chain: priorities, full queues, early ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import (
    DeadlineExceeded,
    Engine,
    Outcome,
    Pending,
    QueueFull,
    time_limit,
)
from edgeserve.serve.settings.reading import settings_from
from edgeserve.tensors import Tensors
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.engine.rules import engine_settings, level_settings
from tests.serve.engine.test_engine import (
    BUSY,
    Call,
    assert_own_numbers,
    engine_of,
    keep_busy,
    slow_edge,
    some_rows,
)
from tests.serve.slow import MAX_BATCH

__all__ = ["slow_edge"]


class Held:
    """The engine's chain, whose next calls wait until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self._chain = engine.chain
        self._gate = threading.Event()
        engine.chain = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self._chain, name)

    def attempt(self, inputs: Tensors) -> object:
        assert self._gate.wait(60)
        return self._chain.attempt(inputs)

    def run_batch(self, joined: Tensors, parts: Sequence[Tensors]) -> object:
        assert self._gate.wait(60)
        return self._chain.run_batch(joined, parts)

    def let_go(self) -> None:
        self._gate.set()


class Prior(Call):
    """A call with a priority that notes when it was answered."""

    answered: list[str]

    def __init__(
        self,
        engine: Engine,
        name: str,
        priority: int,
        order: list[str],
        timeout_s: float | None = None,
    ) -> None:
        self.x = some_rows(MAX_BATCH, 1)
        self.results: list[Outcome | EdgeServeError] = []
        self._called = asyncio.Event()
        self._name, self._order = name, order
        self.pending = engine.submit({"x": self.x}, MAX_BATCH, timeout_s, self._note, priority)

    def _note(self, result: Outcome | EdgeServeError) -> None:
        self._order.append(self._name)
        self._done(result)


async def started(call: Call) -> None:
    while not call.pending.started:  # noqa: ASYNC110 - a worker sets it
        await asyncio.sleep(0)


async def overdue(call: Call) -> None:
    while not call.pending.overdue:  # noqa: ASYNC110 - a timer sets it
        await asyncio.sleep(0)


def test_the_important_go_first_and_unknown_priorities_are_the_default(slow_edge: Path) -> None:
    async def story() -> None:
        options = engine_settings(priority_levels=3, default_priority=2)
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
        options = engine_settings(
            queue=4, queue_policy="displace", priority_levels=3, default_priority=2
        )
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
        async with engine_of(slow_edge, engine_settings(queue=BUSY + 2)) as (engine, batches):
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


def test_the_overdue_are_delayed_behind_their_level_and_answered(slow_edge: Path) -> None:
    async def story() -> None:
        options = engine_settings(
            priority_levels=2, default_priority=2, timeout_action="delay", timeout_s=1e-4
        )
        async with engine_of(slow_edge, options) as (engine, _):
            held = Held(engine)
            order: list[str] = []
            first = Prior(engine, "first", 1, order)
            await started(first)
            late = [Prior(engine, f"late {level}", level, order) for level in (2, 1)]
            for call in (first, *late):
                await overdue(call)
            late.append(Prior(engine, "before it came", 1, order, -1.0))
            in_time = [Prior(engine, f"in time {level}", level, order, 0.0) for level in (2, 1)]
            held.let_go()
            for call in (first, *late, *in_time):
                assert_own_numbers(call, await call.outcome())
            assert order == [
                "first", "in time 1", "late 1", "before it came", "in time 2", "late 2",
            ]  # fmt: skip
            assert engine.pending == 0

    asyncio.run(story())


def test_the_overdue_may_leave_and_come_late_to_an_engine(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(timeout_action="delay")) as (
            engine,
            batches,
        ):
            held = Held(engine)
            order: list[str] = []
            first = Prior(engine, "first", 0, order)
            await started(first)
            gone = Prior(engine, "gone", 0, order, 1e-4)
            moved = Call(engine, some_rows(MAX_BATCH), -1.0)
            await overdue(gone)
            engine.cancel(gone.pending)
            engine.cancel(moved.pending)
            # As one that waited for its model to be loaded.
            x = some_rows(MAX_BATCH)
            elsewhere = Pending({"x": x}, MAX_BATCH, lambda _: order.append("elsewhere"), 0.0)
            elsewhere.delay_after(0, asyncio.get_running_loop())
            await asyncio.sleep(0.01)
            engine.take(elsewhere, 0)
            last = Prior(engine, "last", 0, order)
            held.let_go()
            assert_own_numbers(last, await last.outcome())
            assert await engine.drain(60)
            assert order == ["first", "last", "elsewhere"]
            assert batches.rows == [MAX_BATCH] * 3

    asyncio.run(story())


def test_levels_wait_by_rules_of_their_own(slow_edge: Path) -> None:
    async def story() -> None:
        levels = {
            1: level_settings(timeout_s=1e-4, own_timeouts=False),
            3: level_settings(timeout_s=1e-4, timeout_action="delay"),
        }
        options = engine_settings(priority_levels=3, default_priority=2, levels=levels)
        async with engine_of(slow_edge, options) as (engine, _):
            held = Held(engine)
            order: list[str] = []
            first = Prior(engine, "first", 2, order)
            await started(first)
            asked = (("refused", 1), ("default", 9), ("delayed", 3))
            refused, default, delayed = (Prior(engine, n, p, order, None) for n, p in asked)
            longer = Prior(engine, "may not be longer", 1, order, 60.0)
            for call in (refused, longer):
                assert isinstance(await call.result(), DeadlineExceeded)
            await overdue(delayed)
            held.let_go()
            for call in (first, default, delayed):
                assert_own_numbers(call, await call.outcome())
            assert order[2:] == ["first", "default", "delayed"]

    asyncio.run(story())


def test_levels_with_a_queue_of_their_own_are_counted_apart(slow_edge: Path) -> None:
    async def story() -> None:
        options = engine_settings(
            queue=2, queue_policy="displace", priority_levels=3, default_priority=2,
            levels={3: level_settings(queue=1)},
        )  # fmt: skip
        async with engine_of(slow_edge, options) as (engine, _):
            held = Held(engine)
            order: list[str] = []
            first = Prior(engine, "first", 2, order)
            await started(first)
            low = Prior(engine, "low", 3, order)
            with pytest.raises(QueueFull, match="1 requests queued or running"):
                Prior(engine, "another low", 3, order)
            middle = Prior(engine, "middle", 2, order)
            with pytest.raises(QueueFull, match="2 requests queued or running"):
                Prior(engine, "another middle", 2, order)
            high = Prior(engine, "high", 1, order)
            assert isinstance(middle.results[0], QueueFull), "not the one that is counted apart"
            engine.cancel(low.pending)
            low = Prior(engine, "low again", 3, order)
            held.let_go()
            for call in (first, high, low):
                assert_own_numbers(call, await call.outcome())
            assert order == ["middle", "first", "high", "low again"]
            last = Prior(engine, "one more", 3, order)
            assert_own_numbers(last, await last.outcome())
            assert engine.pending == 0

    asyncio.run(story())


def test_a_server_delays_as_its_settings_say(slow_edge: Path) -> None:
    values = {
        "bundle": str(slow_edge), "http_port": 0, "timeout_action": "delay", "priority_levels": 2,
        "priority": [{"level": 2, "timeout_action": "reject"}],
    }  # fmt: skip
    with Background(settings_from(values)) as server, RawClient(server.url) as client:
        for priority, status in ((1, 200), (2, 504), (0, 200)):
            parameters = {"timeout": 1, "priority": priority}
            body = infer_body([[1, 2, 3, 4]], parameters=parameters)
            client.send(post(body, "/v2/models/slow/infer"))
            assert client.response()[0] == status


def test_a_delay_waits_for_company(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(batch_delay_s=5.0)) as (engine, batches):
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
    assert time_limit(engine_settings(timeout_s=server, own_timeouts=own), asked) == limit
