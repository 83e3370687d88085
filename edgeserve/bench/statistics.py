"""The few statistics that measurements are reported with, each with its source.

Percentiles are reported only from enough samples; `None` stands for "not enough".
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from edgeserve.bench.interleave import Milliseconds

# MLPerf Inference's early-stopping criterion (mlcommons/inference, early_stopping.adoc): the fewest
# samples from which a percentile can be claimed with 99 % confidence.
MIN_SAMPLES: Final = {50: 11, 90: 64, 99: 662}


class Summary(msgspec.Struct, frozen=True):
    """Latencies in ms. `spread` is the interquartile range over the median; `outliers` counts values
    beyond Tukey's outer fences (Exploratory Data Analysis, 1977: quartiles -/+ 3 interquartile ranges)."""

    samples: int
    mean: float
    minimum: float
    p50: float
    p90: float | None
    p99: float | None
    spread: float
    outliers: int


class Interval(msgspec.Struct, frozen=True):
    """A ratio with its confidence interval."""

    ratio: float
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


def median_interval(values: Milliseconds, confidence: float = 0.95) -> tuple[float, float]:
    """A percentile-bootstrap interval of the median (Efron and Tibshirani, 1993, ch. 13)."""
    medians = _bootstrap_medians(values, seed=0)
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return float(low), float(high)


def ratio_interval(
    baseline: Milliseconds, values: Milliseconds, confidence: float = 0.95
) -> Interval:
    """How many times faster `values` are than `baseline`: the ratio of medians, bootstrapped."""
    ratios = _bootstrap_medians(baseline, seed=0) / _bootstrap_medians(values, seed=1)
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    return Interval(float(np.median(baseline) / np.median(values)), float(low), float(high))


def _bootstrap_medians(values: Milliseconds, *, seed: int, resamples: int = 1000) -> Milliseconds:
    """Medians of resamples. Long series are thinned evenly: 1,000 values fix a median well enough."""
    if len(values) > 1000:
        values = values[np.linspace(0, len(values) - 1, 1000).astype(int)]
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    medians: Milliseconds = np.median(values[picks], axis=1)
    return medians
