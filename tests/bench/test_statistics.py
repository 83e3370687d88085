"""Statistics against scipy, and what intervals must hold whatever the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.bench.interleave import Timings
from edgeserve.bench.statistics import (
    MIN_SAMPLES,
    drift,
    paired_speedup,
    percentile,
    percentile_interval,
    share_interval,
    speedup_interval,
    summarize,
)

times = st.lists(st.floats(0.001, 1000), min_size=1, max_size=200).map(np.array)


def timings(values: np.ndarray, rounds: int = 20) -> Timings:
    return Timings(values, np.arange(len(values)) * rounds // len(values), 10, True)


@given(times)
def test_a_summary_agrees_with_scipy(values: np.ndarray) -> None:
    found = summarize(values)
    assert found.samples == len(values)
    assert found.p50 == pytest.approx(scipy.stats.scoreatpercentile(values, 50))
    assert found.spread == pytest.approx(scipy.stats.iqr(values) / np.median(values))
    assert found.minimum <= found.p50
    assert found.mean == pytest.approx(scipy.stats.tmean(values))
    if found.p90 is not None:
        assert found.p90 == pytest.approx(scipy.stats.scoreatpercentile(values, 90))


@pytest.mark.parametrize("rank", [50, 90, 99])
def test_the_fewest_samples_are_those_of_early_stopping(rank: int) -> None:
    """The smallest n for which at most one slower call among n is improbable (1 %) should the true
    percentile be worse."""
    n = next(n for n in range(1, 10_000) if scipy.stats.binom.cdf(1, n, 1 - rank / 100) <= 0.01)
    assert MIN_SAMPLES[rank] == n
    assert percentile(np.ones(n), rank) == 1.0
    assert percentile(np.ones(n - 1), rank) is None


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        summarize(np.array([]))


def test_outliers_are_beyond_tukey_s_outer_fences() -> None:
    values = np.concatenate([np.linspace(1, 2, 101), [100.0]])
    low, high = scipy.stats.scoreatpercentile(values, [25, 75])
    assert summarize(values).outliers == int(np.sum(values > high + 3 * (high - low))) == 1


@pytest.mark.parametrize("rank", [50, 90])
def test_the_interval_of_independent_values_agrees_with_scipy_s_bootstrap(rank: int) -> None:
    values = np.random.default_rng(3).lognormal(0, 0.2, 800)
    found = percentile_interval(timings(values, rounds=800), rank)
    wanted = scipy.stats.bootstrap(
        (values,),
        lambda v, axis: np.percentile(v, rank, axis=axis),
        n_resamples=1000,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert found is not None
    assert found.low == pytest.approx(wanted.low, rel=0.01)
    assert found.high == pytest.approx(wanted.high, rel=0.01)


def test_rounds_that_differ_widen_the_interval() -> None:
    """Values that repeat within a round are one observation, not a thousand."""
    rng = np.random.default_rng(0)
    moods = np.repeat(rng.normal(10, 1, 20), 1000)
    values = moods + rng.normal(0, 0.01, len(moods))
    by_rounds = percentile_interval(timings(values, rounds=20), 50)
    alone = percentile_interval(timings(values, rounds=1), 50)
    assert by_rounds is not None
    assert alone is not None
    assert by_rounds.high - by_rounds.low > 3 * (alone.high - alone.low)


def test_what_slows_both_cancels_out_of_a_speed_up() -> None:
    moods = np.repeat(np.random.default_rng(0).uniform(1, 3, 30), 100)
    noise = np.random.default_rng(1).normal(1, 0.01, len(moods))
    found = speedup_interval(timings(2 * moods * noise, 30), timings(moods, 30))
    assert found.value == pytest.approx(2, rel=0.05)
    assert found.high - found.low < 0.2
    alone = percentile_interval(timings(moods, 30), 50)
    assert alone is not None
    assert alone.high / alone.low > 1.2


def test_a_paired_speed_up_compares_what_was_measured_in_the_same_round() -> None:
    # One call costs more than twice as much while the machine is slow, the other nearly as much; of the
    # quick rounds one got many calls, of the slow ones the other.
    slow = np.arange(30) % 3 == 0
    a = np.concatenate([np.full(10 if s else 1000, 2.2 if s else 1.0) for s in slow])
    b = np.concatenate([np.full(1000 if s else 10, 1.1 if s else 0.5) for s in slow])
    rounds_a = np.concatenate([np.full(10 if s else 1000, i) for i, s in enumerate(slow)])
    rounds_b = np.concatenate([np.full(1000 if s else 10, i) for i, s in enumerate(slow)])
    mine, other = Timings(a, rounds_a, 0, True), Timings(b, rounds_b, 0, True)
    found = paired_speedup(mine, other)
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))
    assert speedup_interval(mine, other).value == pytest.approx(1 / 1.1)


@given(times, times)
@settings(max_examples=25, deadline=None)
def test_intervals_hold_their_value(a: np.ndarray, b: np.ndarray) -> None:
    found = speedup_interval(timings(a, 1), timings(b, 1))
    assert found.value == pytest.approx(np.median(a) / np.median(b))
    assert found.low <= found.value <= found.high
    swapped = speedup_interval(timings(b, 1), timings(a, 1))
    assert swapped.value == pytest.approx(1 / found.value)


def test_intervals_are_the_same_every_time() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.3, 500)
    assert percentile_interval(timings(values), 50) == percentile_interval(timings(values), 50)


def test_too_few_samples_have_no_interval() -> None:
    assert percentile_interval(timings(np.ones(600)), 99) is None


@given(st.integers(1, 500), st.data())
def test_the_interval_of_a_share_agrees_with_scipy(samples: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, samples))
    found = share_interval(hits, samples)
    wanted = scipy.stats.binomtest(hits, samples).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.ones(30), 0.0),
        (np.concatenate([np.ones(10), np.full(10, 1.1), np.full(10, 1.2)]), 0.2),
        (np.concatenate([np.full(10, 2.0), np.ones(20)]), -0.5),
        (np.ones(2), 0.0),
    ],
)
def test_drift_compares_the_end_with_the_beginning(values: np.ndarray, wanted: float) -> None:
    assert drift(values) == pytest.approx(wanted)
