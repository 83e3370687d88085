"""Limits as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.gate.config import GateTable
from edgeserve.gate.limits import BUDGETS, Value, limit_text, parse_limit


@pytest.mark.parametrize(
    ("key", "written", "wanted"),
    [
        ("max_size", "5 MB", 5e6),
        ("max_size", "5MB", 5e6),
        ("max_size", "5 MiB", 5 * 2**20),
        ("max_size", "1.5kB", 1500),
        ("max_size", "200 B", 200),
        ("max_size", 200, 200),
        ("max_size", "200", 200),
        ("max_peak_rss", "0.1 GB", 1e8),
        ("max_latency_p50", 3, 3),
        ("max_latency_p50", "3", 3),
        ("max_latency_p50", "3 ms", 3),
        ("max_latency_p99", "250 us", 0.25),
        ("max_latency_p99", "250µs", 0.25),
        ("max_latency_p99", "1.5 s", 1500),
        ("max_accuracy_drop", 0.5, 0.5),
        ("max_accuracy_drop", "0.5 points", 0.5),
        ("max_accuracy_drop", 0, 0),
        ("min_accuracy", 0.9, 0.9),
        ("min_accuracy", "90 %", 0.9),
        ("min_fidelity", "97.5%", 0.975),
        ("min_fidelity", 1, 1),
        ("min_sqnr_db", "25 dB", 25),
        ("min_cosine", 0.99, 0.99),
        ("min_speedup", "2.5x", 2.5),
        ("min_speedup", ".5", 0.5),
    ],
)
def test_units(key: str, written: Value, wanted: float) -> None:
    assert parse_limit(BUDGETS[key], written, "here") == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("max_size", "5 parsecs"),
        ("max_size", "5 ms"),
        ("max_size", ""),
        ("max_size", "MB"),
        ("max_size", "-5 MB"),
        ("max_size", -5),
        ("max_size", "5 MB extra"),
        ("max_size", "9" * 400),
        ("max_size", True),
        ("max_latency_p50", "3 MB"),
        ("max_latency_p50", float("nan")),
        ("max_latency_p50", float("inf")),
        ("max_latency_p50", "nan"),
        ("max_latency_p50", "٣ ms"),
        ("min_accuracy", 90),
        ("min_accuracy", "101 %"),
        ("min_cosine", 1.1),
    ],
)
def test_what_is_no_limit_is_refused_with_an_example(key: str, written: Value) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limit(BUDGETS[key], written, "edgeserve.toml [gate] x")
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith("edgeserve.toml [gate] x: ")
    assert key in caught.value.message
    assert caught.value.hint


@given(st.sampled_from(sorted(BUDGETS)), st.floats(0.001, 1))
def test_a_limit_as_it_is_shown_reads_as_itself(key: str, share: float) -> None:
    budget = BUDGETS[key]
    value = share if budget.unit in ("share", "cosine") else 1e6 * share
    shown = limit_text(budget.unit, value)
    # What is shown is rounded: to 3 digits, 2 decimals for points, 1 for decibels, whole bytes.
    assert parse_limit(budget, shown, "here") == pytest.approx(value, rel=0.005, abs=0.5e-4)


@given(st.sampled_from(sorted(BUDGETS)), st.text() | st.integers() | st.floats())
def test_anything_is_a_limit_or_a_usage_error(key: str, written: Value) -> None:
    with contextlib.suppress(UsageError):
        assert parse_limit(BUDGETS[key], written, "here") >= 0


def test_every_budget_is_a_key_and_says_its_direction() -> None:
    others = {"device", "against", "models"}
    assert set(GateTable.__struct_fields__) == set(BUDGETS) | others
    assert all(key.startswith(("max_", "min_")) for key in BUDGETS)
    assert BUDGETS["max_size"].is_maximum
    assert not BUDGETS["min_cosine"].is_maximum
