"""What several workers say, as one: nothing is counted twice or lost, and the worst is what is told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge

from edgeserve.serve.engine import BatchTimes
from edgeserve.serve.metrics.prometheus import rendered
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.metrics.shared import Family, Shown, added, families
from edgeserve.serve.metrics.statistics import MemoryUsage, ModelStatistics, statistics_of
from edgeserve.serve.models.entries import State
from edgeserve.serve.status.status import ModelStatus, ServerStatus, readiness
from edgeserve.serve.workers.adding import Departed, added_statistics, status_of_all, total
from edgeserve.serve.workers.messages import Report

EIGHTHS = st.integers(0, 8_000).map(lambda n: n / 8)  # seconds whose sums are exact
BATCHES = st.lists(
    st.builds(
        BatchTimes,
        rows=st.integers(1, 4),
        queue_s=st.lists(EIGHTHS, min_size=1, max_size=3).map(tuple),
        input_s=EIGHTHS,
        infer_s=EIGHTHS,
        output_s=EIGHTHS,
    ),
    max_size=8,
)


def recorded(batches: list[BatchTimes], name: str = "m") -> ModelStatistics:
    recorder = Recorder().model(name, "1")
    for batch in batches:
        recorder.batch(batch)
    recorder.answered = sum(len(batch.queue_s) for batch in batches)
    return statistics_of(recorder, (MemoryUsage("CPU", 0, 10),))


@given(BATCHES, BATCHES)
def test_statistics_add_up_to_those_of_one_process(
    one: list[BatchTimes], other: list[BatchTimes]
) -> None:
    (together,) = added_statistics([recorded(one), recorded(other)])
    alone = recorded(one + other)
    assert together.memory_usage == (MemoryUsage("CPU", 0, 20),)
    assert together.last_inference <= alone.last_inference
    same = {"memory_usage": (), "last_inference": 0}
    assert msgspec.structs.replace(together, **same) == msgspec.structs.replace(alone, **same)


def counted(value: float, gauge: float, model: str = "m") -> list[Family]:
    registry = CollectorRegistry()
    Counter("c", "what", ["model", "version"], registry=registry).labels(model, "1").inc(value)
    Gauge("g", "what", ["model", "version"], registry=registry).labels(model, "1").set(gauge)
    return families(registry)


def test_counters_and_gauges_are_added_and_rendered_as_they_were() -> None:
    text = rendered(Shown(added([counted(2, 5), counted(3, 1), counted(7, 7, "n")]))).decode()
    assert 'c_total{model="m",version="1"} 5.0' in text
    assert 'c_total{model="n",version="1"} 7.0' in text
    assert 'g{model="m",version="1"} 6.0' in text
    assert "# TYPE c_total counter" in text


def test_what_a_dead_worker_counted_stays_and_what_it_measured_goes() -> None:
    departed = Departed()
    one = recorded([BatchTimes(1, (0.0,), 0.0, 1.0, 0.0)])
    departed.add(Report(counted(2, 5), [one]))
    departed.add(Report(counted(1, 5), [one]))
    living = Report(counted(10, 1), [one])
    together = total([departed.beside([living]), living])
    text = rendered(Shown(together.families)).decode()
    assert 'c_total{model="m",version="1"} 13.0' in text
    assert 'g{model="m",version="1"} 1.0' in text
    (statistics,) = together.statistics
    assert statistics.execution_count == 3
    assert statistics.memory_usage == (MemoryUsage("CPU", 0, 10),)


def test_what_was_counted_of_models_that_nobody_has_any_more_stays() -> None:
    departed = Departed()
    one = recorded([BatchTimes(1, (0.0,), 0.0, 1.0, 0.0)])
    departed.add(Report(counted(2, 5), [one]))
    other = Report(counted(10, 1, "n"), [recorded([], "n")])
    left = departed.beside([other])
    assert 'c_total{model="m",version="1"} 2.0' in rendered(Shown(left.families)).decode()
    assert left.statistics == []  # nobody serves it
    again = Report(counted(0, 1), [recorded([])])
    (statistics,) = total([departed.beside([again]), again]).statistics
    assert statistics.execution_count == 1


def status(ready: bool, serving: bool = True, **models: State) -> ServerStatus:
    found = tuple(
        ModelStatus(name, "1", s, ready=s == "READY", reason="" if s == "READY" else "why")
        for name, s in models.items()
    )
    return ServerStatus(ready, serving, found, tuple(m.key for m in found if m.ready))


@pytest.mark.parametrize(
    ("states", "silent", "expected"),
    [
        ({1: status(True, m="READY"), 2: status(True, m="READY")}, {}, (True, True)),
        ({1: status(True, m="READY"), 2: status(False, m="UNAVAILABLE")}, {}, (False, True)),
        ({1: status(True, m="READY"), 2: status(False, m="LOADING")}, {}, (False, True)),
        (
            {1: status(True, m="READY"), 2: status(False, serving=False, m="READY")},
            {},
            (False, True),
        ),
        # Both say that they are ready, but not for the same models.
        ({1: status(True, m="READY"), 2: status(True, m="UNAVAILABLE")}, {}, (False, True)),
        ({1: status(True, m="READY"), 2: status(True)}, {}, (False, True)),
        ({1: status(True, m="READY")}, {2: "it did not answer"}, (False, True)),
        ({1: status(False, m="UNAVAILABLE")}, {2: "it did not answer"}, (False, False)),
        ({}, {1: "it did not answer", 2: "it did not answer"}, (False, False)),
    ],
)
def test_the_server_is_ready_if_all_workers_are_or_any(
    states: dict[int, ServerStatus], silent: dict[int, str], expected: tuple[bool, bool]
) -> None:
    for rule, ready in zip(("all", "any"), expected, strict=True):
        found = status_of_all(states, silent, rule)  # type: ignore[arg-type]
        assert found.ready is ready
        assert (("m", "1") in found.serves) is ready
        assert [w.worker for w in found.workers] == sorted([*states, *silent])
        assert {w.worker: w.reason for w in found.workers if w.worker in silent} == silent


def test_the_index_tells_the_worst_and_who_says_so() -> None:
    states = {1: status(True, m="READY", n="READY"), 2: status(True, m="UNAVAILABLE", n="READY")}
    found = status_of_all(states, {}, "all")
    assert [(m.key, m.state, m.reason) for m in found.models] == [
        (("m", "1"), "UNAVAILABLE", "worker 2: why"),
        (("n", "1"), "READY", ""),
    ]
    told = readiness(found)["m"]
    assert (told.ready, told.reason) == (False, "worker 2: why")
