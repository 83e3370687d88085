"""The metrics' own histograms show what prometheus_client's show."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edgeserve.serve.engine import BatchTimes
from edgeserve.serve.metrics.prometheus import _BATCHES, ServerMetrics
from edgeserve.serve.metrics.recorder import SECONDS, Recorder


def samples(text: bytes, name: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by sample name and labels, of one metric; without `_created`."""
    (family,) = (f for f in text_string_to_metric_families(text.decode()) if f.name == name)
    assert family.type == "histogram"
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in family.samples}


@given(
    st.lists(
        st.tuples(
            st.integers(1, 100),
            st.sampled_from(SECONDS) | st.floats(0, 20),
            st.sampled_from(SECONDS) | st.floats(0, 20),
        ),
        max_size=30,
    )
)
@settings(deadline=None)
def test_histograms_are_those_of_prometheus_client(
    batches: list[tuple[int, float, float]],
) -> None:
    own, registry = Recorder(), CollectorRegistry()
    theirs = {
        name: Histogram(name, "-", ["model", "version"], buckets=bounds, registry=registry).labels(
            "m", "1"
        )
        for name, bounds in (
            ("edgeserve_batch_rows", _BATCHES),
            ("edgeserve_queue_seconds", SECONDS),
            ("edgeserve_compute_seconds", SECONDS),
        )
    }
    metrics = own.model("m", "1")
    own.model("other", "1").batch(BatchTimes(3, [0.5], 0.0, 0.5, 0.0))
    for rows, queued, computed in batches:
        metrics.batch(BatchTimes(rows, [queued, 2 * queued], 0.0, computed, 0.0))
        theirs["edgeserve_batch_rows"].observe(rows)
        theirs["edgeserve_compute_seconds"].observe(computed)
        for seconds in (queued, 2 * queued):
            theirs["edgeserve_queue_seconds"].observe(seconds)
    for name in theirs:
        shown = samples(ServerMetrics(own).render(), name)
        other = {k: v for k, v in shown.items() if ("model", "other") in k[1]}
        assert other
        wanted = samples(generate_latest(registry), name)
        assert {k: v for k, v in shown.items() if k not in other} == wanted
