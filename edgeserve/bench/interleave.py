"""Timing several callables in turns, so that a busy or slow moment of the machine hits all alike.

Each turn runs one callable for a short block: the engines' idle threads spin for some milliseconds after
a call and would slow whoever runs next, so the head of a block is not counted. Blocks follow each other
in shuffled rounds. A fixed seed makes the order the same in every run.

Every call is timed by itself, even one of microseconds: a loop around several would average away the
tail that percentiles are about. `timer_overhead_ms` says what that adds to each.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

Milliseconds = npt.NDArray[np.float64]

_HEAD_S: Final = 0.010
_SLOW_S: Final = (
    5 * _HEAD_S
)  # calls this long outlast the spinning themselves: nothing to leave out
_BLOCK_SAMPLES: Final = (
    2000  # bounds what a callable of microseconds adds to the memory in one turn
)
_MIN_ROUNDS: Final = 10
_FULL_ROUNDS: Final = 30
_WARM_UP_TOLERANCE: Final = 0.05


class Timings(msgspec.Struct, frozen=True):
    """The measured times of one callable in ms, in order, and the round each was taken in.

    `warm_up` calls came before them; `settled` is False when they were still getting faster at its end.
    """

    ms: Any  # Milliseconds: msgspec has no type for arrays
    rounds: Any  # an int array as long as `ms`
    warm_up: int
    settled: bool


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    max_seconds: float,
    min_samples: int = 30,
    block_seconds: float = 0.1,
    max_samples: int = 20_000,
    warm_up_seconds: float = 2.0,
    patience: float = 4.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Timings]:
    """Warm every callable up, then time them in turns.

    Ends after `max_seconds` over all callables once each has `min_samples` (for slow callables at
    `patience * max_seconds` in any case, with at least one), or at `max_samples` each. `progress` gets
    the share done after each round. Garbage collection is off meanwhile.
    """
    warm = {name: warm_up(run, warm_up_seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds: dict[str, list[int]] = {name: [] for name in runs}
    block_seconds = min(block_seconds, max_seconds / (_MIN_ROUNDS * len(runs)))
    order = list(runs)
    shuffle = random.Random(0).shuffle  # noqa: S311 - an order, not a secret
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began, done = time.perf_counter(), 0
        while True:
            shuffle(order)
            for name in order:
                block = _block(runs[name], block_seconds)
                times[name] += block
                rounds[name] += [done] * len(block)
            done += 1
            elapsed = time.perf_counter() - began
            fewest = min(len(t) for t in times.values())
            finished = (
                (fewest >= max_samples and done >= _FULL_ROUNDS)
                or (elapsed >= max_seconds and fewest >= min_samples)
                or elapsed >= patience * max_seconds
            )
            if progress is not None:
                share = min(elapsed / max_seconds, fewest / min_samples)
                progress(1.0 if finished else min(1.0, share))
            if finished:
                break
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timings(np.asarray(values, np.float64), np.asarray(rounds[name]), *warm[name])
        for name, values in times.items()
    }


def warm_up(run: Callable[[], object], max_seconds: float) -> tuple[int, bool]:
    """Call until the median of the last calls stops falling; how many calls that took, and whether it
    did stop within `max_seconds`.

    Stopped means that the median of the last 5 is not over 5 % below that of the 5 before.
    """
    times: list[float] = []
    deadline = time.perf_counter() + max_seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        times.append(_timed(run))
        if len(times) >= 10:
            before, last = np.median(times[-10:-5]), np.median(times[-5:])
            if last >= (1.0 - _WARM_UP_TOLERANCE) * before:
                return len(times), True
    return len(times), False


def timer_overhead_ms(calls: int = 1000) -> float:
    """What timing adds to each time: the median of timing a callable that does nothing."""
    return float(np.median([_timed(lambda: None) for _ in range(calls)]))


def _block(run: Callable[[], object], seconds: float) -> list[float]:
    """One turn: an uncounted head, then calls until `seconds` are over, at least one."""
    head = min(_HEAD_S, seconds / 4)
    head_end = time.perf_counter() + head
    first = _timed(run)
    times: list[float] = []
    if first > 1000 * _SLOW_S:
        times.append(first)
    while time.perf_counter() < head_end:
        run()
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < _BLOCK_SAMPLES):
        times.append(_timed(run))
    return times


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6
