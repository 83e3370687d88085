"""What is recorded once reads the same in Prometheus text, in Triton's names and in the v2 statistics."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edgeserve.bundle import Candidate
from edgeserve.serve.engine import BatchTimes
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import FAILURES, Recorder
from edgeserve.serve.metrics.shared import families, requests_of
from edgeserve.serve.metrics.statistics import statistics_of
from edgeserve.serve.metrics.triton import TritonMetrics

GPU, CPU = Candidate("fp16", "onnxruntime", "gpu"), Candidate("fp32", "onnxruntime", "cpu")
BATCHES = st.lists(
    st.builds(
        BatchTimes,
        rows=st.integers(1, 70),
        queue_s=st.lists(st.floats(0, 2), min_size=1, max_size=3),
        input_s=st.floats(0, 2),
        infer_s=st.floats(0, 20),
        output_s=st.floats(0, 2),
    ),
    max_size=40,
)


def read(metrics: ServerMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


@given(BATCHES, st.lists(st.sampled_from(FAILURES)), st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None)
def test_all_renderings_agree(
    batches: list[BatchTimes], failures: list[str], hits: int, misses: int
) -> None:
    recorder = Recorder()
    model = recorder.model("m", "1")
    for batch in batches:
        model.batch(batch)
        model.answered += len(batch.queue_s)
    for reason in failures:
        model.failed(reason, 0.5)
    for _ in range(hits):
        model.cache_hit(0.25)
        model.answered += 1
    for _ in range(misses):
        model.cache_miss(0.25)

    pending = TritonMetrics(recorder, lambda: {("m", "1"): 3})
    shown = read(ServerMetrics(recorder, lambda: 7, pending))
    of_m = frozenset({("model", "m"), ("version", "1")})
    told = statistics_of(model)
    stats = told.inference_stats
    assert shown["edgeserve_requests_total", of_m] == stats.success.count == model.answered
    assert shown["nv_inference_request_success_total", of_m] == model.answered
    assert shown["edgeserve_batch_rows_count", of_m] == told.execution_count == len(batches)
    assert shown["nv_inference_exec_count_total", of_m] == len(batches)
    assert shown["edgeserve_batch_rows_sum", of_m] == told.inference_count
    assert shown["edgeserve_queue_seconds_count", of_m] == stats.queue.count
    assert shown["edgeserve_cache_hits_total", of_m] == stats.cache_hit.count == hits
    assert shown["edgeserve_cache_misses_total", of_m] == stats.cache_miss.count == misses
    counted = Counter(failures)
    for reason in FAILURES:
        labels = of_m | {("reason", reason)}
        assert shown["edgeserve_request_failures_total", labels] == counted[reason]
    assert stats.fail.count == len(failures)
    assert shown["nv_inference_pending_request_count", of_m] == 3
    assert shown["edgeserve_in_flight_requests", frozenset()] == 7
    requests = requests_of(families(ServerMetrics(recorder)))["m", "1"]
    assert (requests.answered, requests.failed) == (model.answered, counted)


def test_refusals_and_steps_are_counted_by_their_labels() -> None:
    recorder = Recorder()
    recorder.refuse_http(404, "unknown_route")
    recorder.refuse_http(404, "unknown_route")
    model = recorder.model("m", "1")
    model.fell_back(GPU, CPU, "crash")
    shown = read(ServerMetrics(recorder))
    refused = frozenset({("status", "404"), ("reason", "unknown_route")})
    assert shown["edgeserve_http_refused_total", refused] == 2
    step = {("from", GPU.label), ("to", CPU.label), ("reason", "crash"), ("model", "m")}
    assert shown["edgeserve_fallback_total", frozenset(step)] == 1
    assert shown["edgeserve_accept_failures_total", frozenset()] == 0


def test_what_is_true_only_while_a_version_is_served_goes_with_it() -> None:
    recorder = Recorder()
    model = recorder.model("m", "1")
    model.watch_pending(lambda: 2)
    model.serving(GPU)
    model.serving(CPU)
    model.answered = 5
    before = read(ServerMetrics(recorder))
    serving = {
        dict(labels)["device"]: value
        for (name, labels), value in before.items()
        if name == "edgeserve_candidate_info"
    }
    assert serving == {"gpu": 0, "cpu": 1}
    recorder.retire("m", "1")
    model.serving(GPU)  # a device that comes back too late
    names = {name for name, _ in read(ServerMetrics(recorder))}
    assert "edgeserve_requests_total" in names
    assert not names & {"edgeserve_candidate_info", "edgeserve_pending_requests"}
