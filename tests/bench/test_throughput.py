"""Ways to run offline work, and that all calls are counted and no failure hangs."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.bench.subjects import close_all, open_all, requests_of, select
from edgeserve.bench.throughput import (
    ROUNDS,
    Way,
    accepts_batches,
    batches_of,
    calls_per_second,
    offline,
    ways,
)
from edgeserve.bundle import Bundle, Candidate
from edgeserve.errors import InferenceFailed
from tests.bench import acme
from tests.bundles import linear_bundle


@pytest.mark.parametrize(
    ("device", "cores", "threads", "max_batch", "wanted"),
    [
        ("cpu", 1, 0, 0, [Way(1, 0, 1)]),
        ("cpu", 4, 0, 0, [Way(1, 0, 1), Way(4, 1, 1)]),
        ("cpu", 4, 2, 0, [Way(1, 2, 1), Way(2, 2, 1)]),
        ("cpu", 2, 4, 0, [Way(1, 4, 1)]),
        ("cpu", 2, 0, 8, [Way(1, 0, 1), Way(2, 1, 1), Way(2, 1, 4)]),
        ("cpu", 1, 0, 64, [Way(1, 0, 1), Way(1, 0, 4), Way(1, 0, 16)]),
        ("gpu.1", 8, 0, 16, [Way(1, 0, 1), Way(2, 0, 1), Way(2, 0, 4), Way(2, 0, 16)]),
    ],
)
def test_ways(device: str, cores: int, threads: int, max_batch: int, wanted: list[Way]) -> None:
    assert ways(device=device, cores=cores, threads=threads, max_batch=max_batch) == wanted


@pytest.mark.parametrize(
    ("way", "text"),
    [
        (Way(1, 0, 1), "1 caller, batch 1"),
        (Way(2, 1, 4), "2 callers x 1 thread, batch 4"),
        (Way(2, 3, 16), "2 callers x 3 threads, batch 16"),
    ],
)
def test_ways_are_described(way: Way, text: str) -> None:
    assert way.describe() == text


@given(st.integers(1, 9), st.sampled_from([1, 4, 16]))
def test_batches_hold_every_request_equally_often(count: int, size: int) -> None:
    requests = [{"x": np.array([[i]])} for i in range(count)]
    batches = batches_of(requests, size)
    assert all(len(b["x"]) == size for b in batches)
    rows = np.concatenate([b["x"][:, 0] for b in batches])
    assert np.bincount(rows, minlength=count).tolist() == [size] * count


def test_every_caller_calls_at_least_once() -> None:
    callers: set[int] = set()
    calls_per_second(lambda _: callers.add(threading.get_ident()), [{}], 3, 0.0)
    assert len(callers) == 3


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_failing_caller_ends_the_slice_with_its_error(fails_at: int) -> None:
    count = itertools.count(1)

    def run(_: object) -> None:
        if next(count) == fails_at:
            raise InferenceFailed("out of tiles")

    with pytest.raises(InferenceFailed, match="out of tiles"):
        calls_per_second(run, [{}], 3, 0.01)


def test_offline_tries_every_way_and_puts_the_fastest_first(bundle: Bundle) -> None:
    opened, _ = open_all(bundle, select(bundle, device="cpu"))
    try:
        found = offline(
            bundle, opened, requests_of(bundle), {"1": 0.01}, cores=2, threads=0, seconds=0.2
        )[0]["1"]
    finally:
        close_all(opened)
    assert {r.way for r in found.rates} == {
        Way(1, 0, 1), Way(2, 1, 1), Way(2, 1, 4), Way(2, 1, 16)
    }  # fmt: skip
    speeds = [r.samples_per_s for r in found.rates]
    assert speeds == sorted(speeds, reverse=True)
    assert all(len(r.slices) == ROUNDS for r in found.rates)
    assert found.best == found.rates[0]
    assert found.failed == ()


def test_batches_that_would_take_too_long_are_left_out_by_name(bundle: Bundle) -> None:
    opened, _ = open_all(bundle, select(bundle, device="cpu"))
    try:
        found = offline(
            bundle, opened, requests_of(bundle), {"1": 400.0}, cores=2, threads=0, seconds=0.1
        )[0]["1"]
    finally:
        close_all(opened)
    assert {r.way.batch for r in found.rates} == {1}
    assert [(f.way.batch, f.kind) for f in found.failed] == [(4, "slow"), (16, "slow")]
    assert found.failed[0].reason == "it would take about 32 s"


@pytest.mark.usefixtures("acme_runtime")
def test_a_session_that_runs_one_call_at_a_time_is_not_credited_with_two(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(),)))
    opened, _ = open_all(bundle, select(bundle))
    found = offline(
        bundle, opened, requests_of(bundle), {"0": 0.01}, cores=2, threads=0, seconds=0.1
    )[0]["0"]
    close_all(opened)
    assert [r.way for r in found.rates] == [Way(1, 0, 1)]
    assert {f.reason for f in found.failed} == {"the session runs 1 at a time"}


def test_static_shapes_take_no_batches(tmp_path: Path) -> None:
    static = Candidate("onnx-fp32", "onnxruntime", "cpu", static_shapes=True)
    free = Candidate("onnx-fp32", "onnxruntime", "cpu")
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(static, free)))
    opened, _ = open_all(bundle, select(bundle))
    close_all(opened)
    assert [accepts_batches(bundle, o) for o in opened] == [0, 64]
