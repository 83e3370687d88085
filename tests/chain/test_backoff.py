"""Pauses that grow, and are forgotten once a candidate has served for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.chain.backoff import Backoff


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 10.0, 60.0, middle)
    pauses = [backoff.failed(100.0) - 100.0 for _ in range(6)]
    assert pauses == pytest.approx([1, 2, 4, 8, 10, 10])


@given(st.integers(1, 2000))
def test_pauses_stay_within_a_fifth_of_their_length(failures: int) -> None:
    backoff = Backoff(1.0, 300.0, 60.0)
    for _ in range(failures):
        backoff.failed(0.0)
    wanted = min(300.0, 2.0 ** min(failures - 1, 9))
    assert backoff.due is not None
    assert 0.8 * wanted <= backoff.due <= 1.2 * wanted


def test_one_that_fails_soon_after_it_came_back_waits_longer() -> None:
    backoff = Backoff(1.0, 300.0, 60.0, middle)
    backoff.failed(0.0)
    backoff.served(1.0)
    assert backoff.due is None
    assert backoff.failed(31.0) == pytest.approx(33.0)


def test_one_that_served_for_long_starts_anew() -> None:
    backoff = Backoff(1.0, 300.0, 60.0, middle)
    for _ in range(5):
        backoff.failed(0.0)
    backoff.served(100.0)
    assert backoff.failed(161.0) == pytest.approx(162.0)


def test_what_did_not_open_at_start_is_not_tried_at_once() -> None:
    backoff = Backoff(1.0, 300.0, 60.0, middle)
    assert backoff.failed_at_start(0.0) == pytest.approx(32.0)
    assert backoff.failed(32.0) == pytest.approx(32.0 + 64.0)


def test_news_bring_it_forward_or_put_it_off() -> None:
    backoff = Backoff(1.0, 300.0, 60.0, middle)
    backoff.hurry(5.0)
    assert backoff.due is None  # nothing is wrong
    assert backoff.is_due(0.0)
    backoff.failed(10.0)
    assert not backoff.is_due(10.5)
    backoff.postpone(20.0)
    assert backoff.due == 20.0
    backoff.hurry(12.0)
    assert backoff.is_due(12.0)
    backoff.give_up()
    assert backoff.due is None


def test_failures_that_are_explained_make_no_pause_longer() -> None:
    backoff = Backoff(1.0, 300.0, 60.0, middle)
    for _ in range(4):
        backoff.failed(100.0)
    backoff.explained(2, 100.0)
    assert backoff.due == pytest.approx(104.0)
    backoff.explained(9, 100.0)
    assert backoff.due == pytest.approx(101.0)
    assert backoff.failed(100.0) == pytest.approx(101.0)
