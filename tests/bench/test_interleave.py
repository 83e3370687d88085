"""Timing in turns: what is called, in which order, for how long. No assertion about times."""

from __future__ import annotations

import gc
import time
from itertools import pairwise

import numpy as np
import pytest

from edgeserve.bench.interleave import interleave, timer_overhead_ms, warm_up


def test_every_callable_gets_the_samples_asked_for() -> None:
    timed = interleave(
        {"quick": lambda: None, "slow": lambda: time.sleep(0.001)},
        max_seconds=0.02,
        min_samples=40,
        patience=1000,
    )
    assert list(timed) == ["quick", "slow"]
    assert all(len(t.ms) >= 40 and len(t.ms) == len(t.rounds) for t in timed.values())
    assert all((t.ms >= 0).all() and t.warm_up >= 3 for t in timed.values())


def test_every_round_holds_every_callable() -> None:
    timed = interleave({"a": lambda: None, "b": lambda: None, "c": lambda: None}, max_seconds=0.3)
    rounds = {name: list(np.unique(t.rounds)) for name, t in timed.items()}
    assert rounds["a"] == rounds["b"] == rounds["c"] == list(range(len(rounds["a"])))
    assert len(rounds["a"]) >= 2


def test_turns_are_blocks_in_an_order_that_changes() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    interleave(runs, max_seconds=0.4, warm_up_seconds=0.01)
    changes = [(x, y) for x, y in pairwise(calls) if x != y]
    assert len(changes) < len(calls) / 10
    # An order that never changed would know three changes: a to b, b to c, c to a.
    assert len(set(changes)) > 3


def test_slow_callables_end_when_patience_does() -> None:
    timed = interleave(
        {"slow": lambda: time.sleep(0.02)},
        max_seconds=0.05,
        min_samples=100_000,
        patience=2,
        warm_up_seconds=0.0,
    )
    assert 1 <= len(timed["slow"].ms) < 100


def test_samples_are_bounded_for_callables_that_take_no_time() -> None:
    timed = interleave({"quick": lambda: None}, max_seconds=60, max_samples=100)
    assert 100 <= len(timed["quick"].ms) <= 30 * 2000


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    interleave({"a": lambda: None}, max_seconds=0.1, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_garbage_collection_is_off_meanwhile_and_on_again_after_an_error() -> None:
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 200:
            raise RuntimeError("broken")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        interleave({"a": run}, max_seconds=10, warm_up_seconds=0.0)
    assert gc.isenabled()
    assert not seen[-1]


def test_warm_up_ends_once_times_stop_falling() -> None:
    # Each of the first calls takes half as long as the one before.
    durations = iter([0.064 / 2**i for i in range(6)] + [0.002] * 10_000)
    calls, settled = warm_up(lambda: time.sleep(next(durations)), max_seconds=5)
    assert settled
    assert calls >= 10


def test_warm_up_is_bounded_and_says_that_times_still_fell() -> None:
    durations = iter([0.03 * 0.8**i for i in range(100)])
    calls, settled = warm_up(lambda: time.sleep(next(durations)), max_seconds=0.06)
    assert 3 <= calls < 10
    assert not settled


def test_the_timer_s_own_cost_is_known() -> None:
    assert 0 < timer_overhead_ms(100) < 1
