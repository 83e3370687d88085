"""Timing several callables in turns, so that a busy or slow moment of the machine hits all alike.

Each turn runs one callable for a short block: the engines' idle threads spin for some milliseconds after
a call and would slow whoever runs next, so the head of a block is not counted. Blocks follow each other
in shuffled rounds. A fixed seed makes the order the same in every run.
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
_WARM_UP_TOLERANCE: Final = 0.05


class Timings(msgspec.Struct, frozen=True):
    """The measured times of one callable in ms, in order; `warm_up` calls came before them."""

    ms: Any  # Milliseconds: msgspec has no type for arrays
    warm_up: int


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    max_seconds: float,
    min_samples: int = 30,
    block_seconds: float = 0.1,
    max_samples: int = 20_000,
    warm_up_seconds: float = 2.0,
) -> dict[str, Timings]:
    """Warm every callable up, then time them in turns.

    Ends after `max_seconds` over all callables once each has `min_samples` (slow callables get those
    whatever it costs), or at `max_samples` each. Garbage collection is off meanwhile.
    """
    warm = {name: warm_up(run, warm_up_seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(0).shuffle  # noqa: S311 - an order, not a secret
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + max_seconds
        while True:
            shuffle(order)
            for name in order:
                times[name] += _block(runs[name], block_seconds)
            fewest = min(len(t) for t in times.values())
            if fewest >= max_samples or (time.perf_counter() >= deadline and fewest >= min_samples):
                break
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timings(np.asarray(values[:max_samples], np.float64), warm[name])
        for name, values in times.items()
    }


def warm_up(run: Callable[[], object], max_seconds: float) -> int:
    """Call until the median of the last calls stops falling; how many calls that took.

    Warm means that the median of the last 5 is not over 5 % below that of the 5 before.
    """
    times: list[float] = []
    deadline = time.perf_counter() + max_seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        times.append(_timed(run))
        if len(times) >= 10:
            before, last = np.median(times[-10:-5]), np.median(times[-5:])
            if last >= (1.0 - _WARM_UP_TOLERANCE) * before:
                break
    return len(times)


def _block(run: Callable[[], object], seconds: float) -> list[float]:
    """One turn: an uncounted head, then calls until `seconds` are over, at least one."""
    head_end = time.perf_counter() + min(_HEAD_S, seconds / 4)
    run()
    while time.perf_counter() < head_end:
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(_timed(run))
    return times


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6
