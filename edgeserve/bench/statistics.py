"""The few statistics that measurements are reported with, each with its source.

Percentiles are reported only from enough samples; `None` stands for "not enough". Intervals of interleaved
timings resample whole rounds: calls of one round share the machine's mood, so treating them as
independent would claim too much.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeserve.bench.interleave import Milliseconds, Timings

# MLPerf Inference's early-stopping criterion (mlcommons/inference, early_stopping.adoc): the fewest
# samples from which a percentile can be claimed with 99 % confidence.
MIN_SAMPLES: Final = {50: 11, 90: 64, 99: 662}

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 1000
_CHUNK: Final = 100  # resamples at a time: bounds the memory
_KEPT: Final = 10_000  # values per series that enter a bootstrap by rounds
_KEPT_SINGLE: Final = 1_000  # and one by one
_MIN_ROUNDS: Final = 8  # fewer rounds say nothing about how rounds differ


class Summary(msgspec.Struct, frozen=True):
    """Latencies in ms. `spread` is the interquartile range over the median; `outliers` counts values
    beyond Tukey's outer fences (Exploratory Data Analysis, 1977: quartiles -/+ 3 interquartile ranges).
    """

    samples: int
    mean: float
    minimum: float
    p50: float
    p90: float | None
    p99: float | None
    spread: float
    outliers: int


class Interval(msgspec.Struct, frozen=True):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def percentile(values: Milliseconds, rank: int) -> float | None:
    """The linearly interpolated percentile (Hyndman and Fan's type 7), or None from too few samples."""
    if len(values) < MIN_SAMPLES[rank]:
        return None
    return float(np.percentile(values, rank))


def summarize(values: Milliseconds) -> Summary:
    """Raises ValueError for no values."""
    if len(values) == 0:
        raise ValueError("nothing was measured")
    low, median, high = np.percentile(values, [25, 50, 75])
    fence = 3.0 * (high - low)
    return Summary(
        samples=len(values),
        mean=float(np.mean(values)),
        minimum=float(np.min(values)),
        p50=float(median),
        p90=percentile(values, 90),
        p99=percentile(values, 99),
        spread=float((high - low) / median) if median > 0 else 0.0,
        outliers=int(np.sum((values < low - fence) | (values > high + fence))),
    )


def drift(values: Milliseconds) -> float:
    """By how much the last third's median is above the first third's, as a share of the latter."""
    third = len(values) // 3
    if third == 0:
        return 0.0
    first, last = np.median(values[:third]), np.median(values[-third:])
    return float(last / first - 1.0) if first > 0 else 0.0


def percentile_interval(timings: Timings, rank: int) -> Interval | None:
    """A percentile with its interval: the percentile bootstrap (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, ch. 13) over whole rounds (Field and Welsh, Bootstrapping clustered data,
    2007). None from too few samples."""
    value = percentile(timings.ms, rank)
    if value is None:
        return None
    values, clusters = _clustered(timings)
    quantiles = _weighted_quantiles(values, clusters, _picks(clusters), rank / 100.0)
    return _around(value, quantiles)


def speedup_interval(baseline: Timings, timings: Timings) -> Interval:
    """How many times faster `timings` are than `baseline`, as the ratio of medians of two series of one
    `interleave`. Both are resampled by the same rounds, so what slowed both cancels out."""
    values_a, a = _clustered(baseline)
    values_b, b = _clustered(timings)
    paired = _in_rounds(baseline) and _in_rounds(timings)
    picks = _picks(a)
    others = picks if paired else _picks(b, seed=1)
    ratios = _weighted_quantiles(values_a, a, picks, 0.5) / _weighted_quantiles(
        values_b, b, others, 0.5
    )
    return _around(float(np.median(baseline.ms) / np.median(timings.ms)), ratios)


def paired_speedup(baseline: Timings, timings: Timings) -> Interval:
    """How many times faster `timings` are than `baseline`, as the median over the rounds of one
    `interleave` of the ratio of a round's medians; the bootstrap resamples rounds.

    Where the machine is fast for some seconds and slow for others, a ratio of medians of everything
    compares the seconds that either series happened to get most of; this compares within each round.
    """
    ratios = _round_medians(baseline) / _round_medians(timings)
    draws = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    return _around(float(np.median(ratios)), np.median(ratios[draws], axis=1))


def _round_medians(timings: Timings) -> Milliseconds:
    return np.array(
        [np.median(timings.ms[timings.rounds == r]) for r in range(int(timings.rounds.max()) + 1)]
    )


def share_interval(hits: int, samples: int) -> Interval:
    """A share of samples with Wilson's score interval (Wilson, 1927, J. Am. Stat. Assoc. 22)."""
    z = 1.959964  # the normal distribution's 97.5 % point
    share = hits / samples
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    half /= 1 + z * z / samples
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _clustered(timings: Timings) -> tuple[Milliseconds, npt.NDArray[np.int64]]:
    """The values, thinned evenly where they are many, and which of them are resampled together: those
    of a round; each by itself where rounds are too few."""
    values, rounds = _thinned(timings.ms, _KEPT), _thinned(timings.rounds, _KEPT)
    if _in_rounds(timings):
        return values, rounds
    values = _thinned(values, _KEPT_SINGLE)
    return values, np.arange(len(values))


def _in_rounds(timings: Timings) -> bool:
    return int(timings.rounds.max()) + 1 >= _MIN_ROUNDS


def _thinned(values: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


def _picks(clusters: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """How often each resample draws each cluster, [resamples, clusters]."""
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    draws += count * np.arange(_RESAMPLES)[:, None]
    return np.bincount(draws.ravel(), minlength=_RESAMPLES * count).reshape(_RESAMPLES, count)


def _weighted_quantiles(
    values: Milliseconds,
    clusters: npt.NDArray[np.int64],
    picks: npt.NDArray[np.int64],
    share: float,
) -> Milliseconds:
    """The quantile of every resample, by counting in the sorted values how often each was drawn."""
    order = np.argsort(values)
    values, clusters = values[order], clusters[order]
    found = []
    for start in range(0, len(picks), _CHUNK):
        drawn = np.cumsum(picks[start : start + _CHUNK, clusters], axis=1)
        found.append(values[np.argmax(drawn >= share * drawn[:, -1:], axis=1)])
    quantiles: Milliseconds = np.concatenate(found)
    return quantiles


def _around(value: float, resampled: Milliseconds) -> Interval:
    tail = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))
