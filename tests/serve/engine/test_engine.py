"""The engine on a real chain and a real loop: own numbers, bounds, deadlines, cancelling, draining."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain import Chain, ChainOptions, Detour
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.serve.engine import (
    BatchTimes,
    DeadlineExceeded,
    Engine,
    EngineSettings,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.tensors import Array, Tensors
from tests.bundles import linear
from tests.serve.engine.rules import engine_settings
from tests.serve.slow import MAX_BATCH, slow, slow_bundle, wide_bundle

BUSY = 20  # full batches that keep one worker busy for long: tens of milliseconds


@pytest.fixture(scope="module")
def slow_edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_bundle(tmp_path_factory.mktemp("slow"))


class Batches:
    """What `on_batch` was told."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.requests: list[int] = []

    def __call__(self, batch: BatchTimes) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert min(batch.queue_s) >= 0
        assert min(batch.input_s, batch.output_s) >= 0
        assert batch.infer_s > 0
        self.rows.append(batch.rows)
        self.requests.append(len(batch.queue_s))


class Call:
    """One request's `done`: keeps whatever it is called with."""

    def __init__(self, engine: Engine, x: Array, timeout_s: float | None = None) -> None:
        self.x = x
        self.results: list[Outcome | EdgeServeError] = []
        self._called = asyncio.Event()
        self.pending: Pending = engine.submit({"x": x}, len(x), timeout_s, self._done)

    def _done(self, result: Outcome | EdgeServeError) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.results.append(result)
        self._called.set()

    async def result(self) -> Outcome | EdgeServeError:
        await asyncio.wait_for(self._called.wait(), 60)
        return self.results[0]

    async def outcome(self) -> Outcome:
        result = await self.result()
        assert isinstance(result, Outcome), result
        return result


@asynccontextmanager
async def engine_of(
    bundle: Path, options: EngineSettings | None = None
) -> AsyncIterator[tuple[Engine, Batches]]:
    chain = Chain(Bundle.open(bundle), ChainOptions(threads=1, spin=False))
    batches = Batches()
    engine = Engine(chain, options or engine_settings(), asyncio.get_running_loop(), batches)
    try:
        yield engine, batches
    finally:
        await asyncio.to_thread(engine.close)


def some_rows(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def keep_busy(engine: Engine) -> list[Call]:
    """Full batches, so that nothing else joins them."""
    return [Call(engine, some_rows(MAX_BATCH, seed)) for seed in range(BUSY)]


def assert_own_numbers(call: Call, outcome: Outcome) -> None:
    np.testing.assert_allclose(outcome.outputs["y"], slow(call.x), rtol=1e-3, atol=1e-3)
    assert outcome.candidate.device == "cpu"
    assert outcome.batch >= len(call.x)


@given(
    sizes=st.lists(st.integers(1, MAX_BATCH), min_size=1, max_size=60),
    instances=st.sampled_from([1, 2]),
    batching=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_every_request_of_a_burst_gets_its_own_rows(
    slow_edge: Path, sizes: list[int], instances: int, batching: bool
) -> None:
    async def story() -> None:
        options = engine_settings(instances=instances, batching=batching)
        async with engine_of(slow_edge, options) as (engine, batches):
            calls = [Call(engine, some_rows(rows, seed)) for seed, rows in enumerate(sizes)]
            for call in calls:
                assert_own_numbers(call, await call.outcome())
            assert await engine.drain(10)
            assert [len(call.results) for call in calls] == [1] * len(calls)
            assert sum(batches.rows) == sum(sizes)
            assert max(batches.rows) <= MAX_BATCH
            assert sum(batches.requests) == len(sizes)
            assert engine.pending == 0
            if not batching:
                assert sorted(batches.rows) == sorted(sizes)

    asyncio.run(story())


def test_what_queued_while_a_worker_was_busy_is_run_together(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, batches):
            assert engine.max_batch == MAX_BATCH
            keep_busy(engine)
            calls = [Call(engine, some_rows(1, seed)) for seed in range(MAX_BATCH)]
            outcomes = [await call.outcome() for call in calls]
            assert {outcome.batch for outcome in outcomes} == {MAX_BATCH}
            assert batches.rows == [MAX_BATCH] * (BUSY + 1)
            assert batches.requests[-1] == MAX_BATCH
            assert all(outcome.queue_s > 0 for outcome in outcomes)

    asyncio.run(story())


def test_a_request_that_does_not_fit_waits_for_the_next_batch(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, batches):
            keep_busy(engine)
            sizes = [MAX_BATCH - 1, 2, MAX_BATCH - 2, 1]
            calls = [Call(engine, some_rows(rows, rows)) for rows in sizes]
            for call in calls:
                assert_own_numbers(call, await call.outcome())
            assert batches.rows[BUSY:] == [MAX_BATCH - 1, MAX_BATCH, 1]

    asyncio.run(story())


def test_without_batching_each_request_runs_alone(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(batching=False)) as (engine, batches):
            assert engine.max_batch == 1
            calls = [Call(engine, some_rows(rows, rows)) for rows in (1, 3, 2, 1)]
            for call in calls:
                outcome = await call.outcome()
                assert_own_numbers(call, outcome)
                assert outcome.batch == len(call.x)
            assert batches.rows == [1, 3, 2, 1]

    asyncio.run(story())


def test_what_batches_do_not_make_quicker_is_run_one_by_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_of(wide_bundle(tmp_path)) as (engine, _):
            assert not engine.inline
            assert engine.max_batch == 1

    asyncio.run(story())


def test_a_request_that_spoils_a_batch_fails_alone(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, batches):
            keep_busy(engine)
            good = [Call(engine, some_rows(1, seed)) for seed in range(3)]
            bad = Call(engine, some_rows(1).astype(np.float64))
            good += [Call(engine, some_rows(1, seed)) for seed in range(3, 6)]
            assert isinstance(await bad.result(), InferenceFailed)
            for call in good:
                assert_own_numbers(call, await call.outcome())
            assert await engine.drain(10)
            assert engine.pending == 0
            assert [len(call.results) for call in (bad, *good)] == [1] * 7
            assert sum(batches.rows) == BUSY * MAX_BATCH + 6

    asyncio.run(story())


@pytest.mark.parametrize(
    ("of_server", "of_request", "exceeded"),
    [
        (0.0, None, False),
        (0.0, 1e-4, True),
        (1e-4, None, True),
        (1e-4, 60.0, False),
        (1e-4, 0.0, False),
    ],
)
def test_a_request_whose_time_is_over_is_answered_and_not_run(
    slow_edge: Path, of_server: float, of_request: float | None, exceeded: bool
) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(timeout_s=of_server)) as (engine, batches):
            for seed in range(BUSY):
                Call(engine, some_rows(MAX_BATCH, seed), 60.0)
            call = Call(engine, some_rows(3), of_request)
            result = await call.result()
            if exceeded:
                assert isinstance(result, DeadlineExceeded)
                assert "within 0.0001 s" in result.message
            else:
                assert isinstance(result, Outcome)
            assert await engine.drain(60)
            assert sum(batches.rows) == BUSY * MAX_BATCH + (0 if exceeded else 3)
            assert len(call.results) == 1

    asyncio.run(story())


def test_the_queue_has_a_limit_and_takes_more_once_it_is_shorter(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(queue=3)) as (engine, batches):
            calls = [Call(engine, some_rows(MAX_BATCH, seed)) for seed in range(3)]
            with pytest.raises(QueueFull, match="3 requests queued or running") as caught:
                Call(engine, some_rows(1))
            assert "--queue" in (caught.value.hint or "")
            for call in calls:
                await call.outcome()
            late = Call(engine, some_rows(1))
            assert_own_numbers(late, await late.outcome())
            assert sum(batches.rows) == 3 * MAX_BATCH + 1

    asyncio.run(story())


def test_a_cancelled_request_is_neither_run_nor_answered(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, batches):
            busy = keep_busy(engine)
            calls = [Call(engine, some_rows(1, seed), 60.0) for seed in range(10)]
            for call in calls[::2]:
                engine.cancel(call.pending)
            assert await engine.drain(60)
            assert [len(call.results) for call in calls] == [0, 1] * 5
            assert all(len(call.results) == 1 for call in busy)
            assert sum(batches.rows) == BUSY * MAX_BATCH + 5
            assert engine.pending == 0

    asyncio.run(story())


def test_cancelling_after_the_answer_changes_nothing(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, _):
            call = Call(engine, some_rows(2))
            await call.outcome()
            engine.cancel(call.pending)
            assert await engine.drain(10)
            assert len(call.results) == 1

    asyncio.run(story())


def test_draining_refuses_what_is_new_and_answers_what_is_in_flight(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, _):
            calls = keep_busy(engine)
            draining = asyncio.create_task(engine.drain(60))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                Call(engine, some_rows(1))
            assert await draining is True
            for call in calls:
                assert len(call.results) == 1
                assert_own_numbers(call, await call.outcome())

    asyncio.run(story())


def test_draining_gives_up_when_time_runs_out(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, _):
            calls = keep_busy(engine)
            assert await engine.drain(0.0001) is False
            assert engine.pending > 0
            assert await engine.drain(60) is True
            assert all(len(call.results) == 1 for call in calls)

    asyncio.run(story())


@pytest.mark.parametrize("instances", [1, 2])
def test_closing_does_not_run_what_still_waits(slow_edge: Path, instances: int) -> None:
    """After a drain that gave up, the process must end, not work through its queue."""

    async def story() -> list[Call]:
        async with engine_of(slow_edge, engine_settings(instances=instances)) as (engine, _):
            calls = keep_busy(engine) + keep_busy(engine) + keep_busy(engine)
            assert await engine.drain(0.0001) is False
        await asyncio.sleep(0)
        return calls

    calls = asyncio.run(story())
    assert sum(len(call.results) for call in calls) < len(calls)
    assert not [t for t in threading.enumerate() if t.name.startswith("edgeserve-instance")]


def test_an_idle_engine_drains_at_once(slow_edge: Path, bundle: Path) -> None:
    async def story() -> None:
        for path in (slow_edge, bundle):
            async with engine_of(path) as (engine, batches):
                assert await engine.drain(1) is True
                assert batches.rows == []
                with pytest.raises(ShuttingDown):
                    Call(engine, some_rows(1))

    asyncio.run(story())


def test_quick_models_are_run_on_the_loop_at_once(bundle: Path) -> None:
    async def story() -> None:
        async with engine_of(bundle, engine_settings(queue=1, timeout_s=1e-9)) as (engine, batches):
            assert engine.inline
            for rows in (1, 5, 64):
                call = Call(engine, some_rows(rows, rows))
                (outcome,) = call.results
                assert isinstance(outcome, Outcome)
                np.testing.assert_allclose(
                    outcome.outputs["y"], linear(call.x), rtol=1e-5, atol=1e-6
                )
                assert (outcome.batch, outcome.queue_s) == (rows, 0.0)
            bad = Call(engine, some_rows(1).astype(np.float64))
            assert isinstance(bad.results[0], InferenceFailed)
            await asyncio.sleep(0.01)
            assert len(call.results) == len(bad.results) == 1
            assert batches.rows == [1, 5, 64]
            assert engine.pending == 0

    before = threading.active_count()
    asyncio.run(story())
    assert threading.active_count() == before


class DriverBug(Chain):
    """A chain over a runtime that raises what its adapter does not know, for rows that start with 13."""

    def run(self, inputs: Tensors) -> tuple[Tensors, Candidate]:
        self.look_at(inputs)
        return super().run(inputs)

    def attempt(self, inputs: Tensors) -> tuple[Tensors, Candidate] | Detour:
        self.look_at(inputs)
        return super().attempt(inputs)

    def run_batch(self, joined: Tensors, parts: Sequence[Tensors]) -> tuple[Tensors, Candidate]:
        self.look_at(joined)
        return super().run_batch(joined, parts)

    def look_at(self, inputs: Tensors) -> None:
        if inputs["x"][0, 0] == 13:
            raise RuntimeError("driver: lost its mind")


@pytest.mark.parametrize("inline", [True, False])
def test_an_exception_nobody_foresaw_fails_its_request_and_no_other(
    bundle: Path, slow_edge: Path, inline: bool
) -> None:
    async def story() -> None:
        chain = DriverBug(Bundle.open(bundle if inline else slow_edge), ChainOptions(threads=1))
        engine = Engine(chain, engine_settings(), asyncio.get_running_loop())
        try:
            assert engine.inline is inline
            bad = Call(engine, np.full((1, 4), 13, np.float32))
            good = Call(engine, some_rows(1))
            error = await bad.result()
            assert isinstance(error, InferenceFailed)
            assert error.cause == "RuntimeError: driver: lost its mind"
            assert isinstance(await good.result(), Outcome)
            assert await engine.drain(10)
            assert len(bad.results) == len(good.results) == 1
        finally:
            await asyncio.to_thread(engine.close)

    asyncio.run(story())


def test_draining_in_no_time_is_possible_when_idle(slow_edge: Path) -> None:
    async def story() -> None:
        async with engine_of(slow_edge) as (engine, _):
            assert await engine.drain(0) is True

    asyncio.run(story())


def test_two_instances_are_two_workers_that_end_with_the_engine(slow_edge: Path) -> None:
    def workers() -> list[str]:
        names = [t.name for t in threading.enumerate()]
        return sorted(name for name in names if name.startswith("edgeserve-instance"))

    async def story() -> None:
        async with engine_of(slow_edge, engine_settings(instances=2)) as (engine, batches):
            assert workers() == ["edgeserve-instance-0", "edgeserve-instance-1"]
            calls = keep_busy(engine)
            for call in calls:
                assert_own_numbers(call, await call.outcome())
            assert batches.rows == [MAX_BATCH] * BUSY

    asyncio.run(story())
    assert workers() == []
