"""The last 15 minutes: points from counts, percentiles from buckets, over HTTP and of several workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import REQUEST_SECONDS, Histogram, Recorder
from edgeserve.serve.metrics.server_counts import RequestCounts
from edgeserve.serve.metrics.shared import families, memory_of, requests_of
from edgeserve.serve.status import history as module
from edgeserve.serve.status.history import SPAN_S, STEP_S, History, quantile
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.running import Served
from tests.waiting import wait_for


class Never:
    async def status(self) -> Any:
        raise AssertionError

    async def counts(self) -> Any:
        raise AssertionError


def counts(
    answered: int = 0, seconds: float = 0.002, pending: int = 0, **failed: int
) -> RequestCounts:
    histogram = Histogram(REQUEST_SECONDS)
    histogram.observe(seconds, answered)
    return RequestCounts(answered, failed, pending, tuple(histogram.counts))


KEY, OTHER = ("m", "1"), ("m", "2")


def test_a_point_is_what_happened_since_the_last_one() -> None:
    found = History(Never())
    found.add(1000.0, 5, {KEY: counts(100)})
    assert found.document().total == []  # nothing to compare with
    found.add(1005.0, 5, {KEY: counts(110, invalid=5, timeout=5), OTHER: counts(40, 0.2, 3)})
    document = found.document()
    (total,) = document.total
    assert (total.rate, total.errors, total.queue) == (10.0, 2.0, 3)
    (one,), (two,) = (model.points for model in document.models)
    assert [(m.name, m.version, m.answered, m.failed) for m in document.models] == [
        ("m", "1", 10, 10),
        ("m", "2", 40, 0),
    ]
    assert (one.rate, one.errors, one.queue) == (2.0, 2.0, 0)
    assert one.p50_ms is not None
    assert 1.6 < one.p50_ms < 2.5
    assert two.p99_ms is not None
    assert 160 < two.p99_ms < 250
    assert (total.p50_ms, total.p99_ms) == (
        pytest.approx(two.p50_ms, rel=0.2),
        pytest.approx(two.p99_ms, rel=0.02),
    )


def test_a_version_without_requests_has_no_points() -> None:
    found = History(Never())
    for i in range(4):
        found.add(1000.0 + 5 * i, 5, {KEY: counts(7)})
    assert len(found.document().total) == 3
    assert found.document().total[0] == module.HistoryPoint(1005.0)
    assert found.document().models == []


def test_points_older_than_the_span_are_forgotten() -> None:
    found = History(Never())
    most = SPAN_S // STEP_S
    for i in range(3 * most):
        found.add(1000.0 + STEP_S * i, STEP_S, {KEY: counts(min(i, most))})
    document = found.document()
    assert len(document.total) == most
    assert document.models == []
    assert document.total[-1].at - document.total[0].at < SPAN_S
    assert [p.at for p in found.document(document.total[-2].at).total] == [document.total[-1].at]


def test_counts_that_are_lost_are_not_negative() -> None:
    found = History(Never())
    found.add(1000.0, 5, {KEY: counts(100, invalid=9)})
    found.add(1005.0, 5, {KEY: counts(10, invalid=1)})
    found.add(1010.0, 5, {})
    assert [(p.rate, p.errors, p.p50_ms) for p in found.document().total] == [(0, 0, None)] * 2


def test_the_clock_may_jump() -> None:
    found = History(Never())
    for at in (1000.0, 1005.0, 10.0, 15.0):
        found.add(at, 5, {KEY: counts(int(at))})
    assert found.document().total[-1].at == 15.0


@given(st.lists(st.floats(30e-6, 9.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_percentiles_are_near_those_of_the_values(values: list[float], share: float) -> None:
    """Within one step of the buckets, which are at most 1.6 apart."""
    histogram = Histogram(REQUEST_SECONDS)
    for value in values:
        histogram.observe(value)
    found = quantile(histogram.bounds, histogram.counts, share)
    assert found is not None
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert exact / 1.61 <= found <= exact * 1.61


def test_percentiles_of_nothing_and_of_the_very_slow() -> None:
    assert quantile((1.0, 2.0), (0, 0, 0), 0.5) is None
    assert quantile((1.0, 2.0), (0, 0, 4), 0.5) == 2.0


def test_workers_counts_are_read_again_from_their_metrics() -> None:
    recorder = Recorder()
    model = recorder.model("m", "1")
    model.answered = 3
    for seconds in (0.0001, 0.02, 20.0):
        model.cache_hit(seconds)
    content = families(ServerMetrics(recorder))
    assert requests_of(content)[KEY].times == tuple(model.request.counts)
    assert memory_of(content) > 1_000_000


def history(url: str, query: str = "") -> Any:
    with RawClient(url) as client:
        client.send(f"GET /status/history{query} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        status, headers, body = client.response()
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert status == (400 if "error" in document else 200)
    assert headers.get("cache-control") == (None if "error" in document else "no-store")
    return document


def test_a_server_keeps_its_history(server: Background) -> None:
    with RawClient(server.url) as client:
        for _ in range(20):
            client.send(post(infer_body([[1, 2, 3, 4]])))
            assert client.response()[0] == 200

    def shown() -> bool:
        return sum(m["answered"] for m in history(server.url)["models"]) >= 20

    wait_for(shown, 30)
    document = history(server.url)
    (model,) = document["models"]
    assert (model["name"], model["version"]) == ("linear", "1")
    assert all(0 < p["p50_ms"] <= p["p99_ms"] < 10_000 for p in model["points"] if p.get("rate"))
    assert document["total"][-1]["at"] <= document["time"]
    assert history(server.url, f"?since={document['time'] + 60}")["total"] == []
    assert "since: expected seconds" in history(server.url, "?since=yesterday")["error"]
    assert "since: expected seconds" in history(server.url, "?since=")["error"]


def test_each_worker_has_the_history_of_all(bundle: Path, tmp_path: Path) -> None:
    with Served(tmp_path, bundle, "--workers", "2") as served:
        wait_for(
            lambda: bool(history(served.url)["total"]), 30
        )  # the first is what counts from now on
        for _ in range(8):
            with RawClient(served.url) as client:
                client.send(post(infer_body([[1, 2, 3, 4]])))
                assert client.response()[0] == 200
        seen = set()

        def everywhere() -> bool:
            """A connection goes to either worker."""
            with RawClient(served.url) as client:
                client.send(b"GET /status HTTP/1.1\r\nHost: t\r\nAccept: application/json\r\n\r\n")
                process = json.loads(client.response()[2])["process"]
                client.send(b"GET /status/history HTTP/1.1\r\nHost: t\r\n\r\n")
                models = json.loads(client.response()[2])["models"]
            if models and models[0]["answered"] == 8:
                seen.add(process)
            return len(seen) == 2

        wait_for(everywhere, 60)
