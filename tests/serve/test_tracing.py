"""Traces of inferences: spans of request, queue and compute, below the client's own; exported over OTLP."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgeserve.errors import DependencyMissing, EnvironmentProblem
from edgeserve.serve import app
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.tracing import Ran, Tracing
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear_bundle
from tests.cli.test_run import serving
from tests.cli.test_run_workers import ask_on, client_of_each
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.held import in_flight
from tests.serve.protocols.asking import ask
from tests.serve.slow import slow_bundle
from tests.waiting import wait_for

sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
NOT_SAMPLED = f"00-{TRACE}-{PARENT}-00"
ROWS = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


class Kept:
    """A server whose spans are kept in memory."""

    def __init__(self, server: Background, tracing: Tracing, exporter: Any) -> None:
        self.server, self._tracing, self._exporter = server, tracing, exporter

    def spans(self) -> list[Any]:
        """Those since the last time, the oldest first."""
        # They are made once the answer is sent.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.server._loop).result()
        self._tracing._provider.force_flush()
        found = sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time)
        self._exporter.clear()
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    bundle = linear_bundle(tmp_path_factory.mktemp("traced"))
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, protocols="tfserving", trace="otlp"
    )
    with kept(settings) as traced:
        yield traced


@contextmanager
def kept(settings: Settings) -> Iterator[Kept]:
    exporter = sdk.InMemorySpanExporter()
    tracing = Tracing(exporter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "open_tracing", lambda kind: tracing)
        server = Background(settings)
    yield Kept(server, tracing, exporter)
    server.stop()


def by_name(spans: list[Any]) -> dict[str, Any]:
    return {span.name: span for span in spans}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/linear/infer", ROWS),
        ("/v1/models/linear:predict", {"instances": [[1, 2, 3, 4]]}),
    ],
)
def test_a_request_has_a_span_with_its_queue_and_compute_below(
    traced: Kept, path: str, body: Any
) -> None:
    assert ask(traced.server, path, body, traceparent=SAMPLED, tracestate="a=b").status == 200
    spans = by_name(traced.spans())
    request, queue, compute = spans[f"POST {path}"], spans["queue"], spans["compute"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.context.trace_state.get("a") == "b"
    assert queue.parent.span_id == compute.parent.span_id == request.context.span_id
    assert request.kind.name == "SERVER"
    found = dict(request.attributes)
    assert found["http.response.status_code"] == 200
    assert (found["edgeserve.model"], found["edgeserve.version"], found["edgeserve.device"]) == (
        "linear",
        "1",
        "cpu",
    )
    assert (found["edgeserve.variant"], found["edgeserve.rows"]) == ("onnx-fp32", 1)
    assert request.start_time <= queue.start_time <= queue.end_time == compute.start_time
    assert compute.start_time <= compute.end_time <= request.end_time
    assert request.status.status_code.name == "UNSET"
    assert request.resource.attributes["service.name"] == "edgeserve"


def test_without_a_parent_a_trace_begins(traced: Kept) -> None:
    ask(traced.server, "/v2/models/linear/infer", ROWS)
    assert by_name(traced.spans())["POST /v2/models/linear/infer"].parent is None


def test_the_client_s_decision_not_to_sample_is_followed(traced: Kept) -> None:
    ask(traced.server, "/v2/models/linear/infer", ROWS, traceparent=NOT_SAMPLED)
    assert traced.spans() == []


@pytest.mark.parametrize(("body", "status"), [({"inputs": []}, 400), (b"{", 400)])
def test_a_request_that_is_wrong_has_no_time_on_a_device(
    traced: Kept, body: Any, status: int
) -> None:
    assert ask(traced.server, "/v2/models/linear/infer", body).status == status
    (span,) = traced.spans()
    assert span.attributes["http.response.status_code"] == status
    assert span.status.status_code.name == "UNSET"  # the client's mistake


def test_calls_over_grpc(traced: Kept) -> None:
    request = messages.ModelInferRequest(model_name="linear")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(
        [1, 2, 3, 4]
    )
    with grpc.insecure_channel(str(traced.server.started.grpc)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        infer(request.SerializeToString(), metadata=(("traceparent", SAMPLED),))
        request.model_name = "none"
        with pytest.raises(grpc.RpcError):
            infer(request.SerializeToString(), metadata=(("traceparent", SAMPLED),))
    found: list[Any] = []
    wait_for(lambda: len(found.__iadd__(traced.spans())) >= 4)  # made on the call's thread
    good, bad = [s for s in found if s.name == f"{SERVICE}/ModelInfer"]
    assert f"{good.parent.span_id:016x}" == PARENT
    assert good.attributes["rpc.response.status_code"] == "OK"
    assert good.attributes["edgeserve.device"] == "cpu"
    assert {s.name for s in found if s.parent and s.parent.span_id == good.context.span_id} == {
        "queue",
        "compute",
    }
    assert bad.attributes["rpc.response.status_code"] == "NOT_FOUND"


def test_each_request_of_a_stream_has_its_spans(traced: Kept) -> None:
    good = messages.ModelInferRequest(model_name="linear", raw_input_contents=[bytes(16)])
    good.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked = [good.SerializeToString(), messages.ModelInferRequest(model_name="no"), good]
    with grpc.insecure_channel(str(traced.server.started.grpc)) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        sent = [a if isinstance(a, bytes) else a.SerializeToString() for a in asked]
        assert len(list(stream(iter(sent), metadata=(("traceparent", SAMPLED),)))) == 3
    found: list[Any] = []
    wait_for(lambda: len(found.__iadd__(traced.spans())) >= 7)
    calls = [s for s in found if s.name == f"{SERVICE}/ModelStreamInfer"]
    assert [f"{s.parent.span_id:016x}" for s in calls] == [PARENT] * 3
    codes = sorted(s.attributes["rpc.response.status_code"] for s in calls)
    assert codes == ["NOT_FOUND", "OK", "OK"]
    assert sorted(s.name for s in found if s not in calls) == ["compute"] * 2 + ["queue"] * 2


def test_failures_of_the_server_are_errors_and_clients_that_leave_are_seen(tmp_path: Path) -> None:
    settings = Settings(
        bundle=str(slow_bundle(tmp_path)),
        http_port=0, threads=1, batch_delay=10.0, trace="otlp", limits=Limits(in_flight=1),
    )  # fmt: skip
    path = "/v2/models/slow/infer"
    with kept(settings) as traced:
        with RawClient(traced.server.url) as client:
            client.send(post(infer_body([[1, 2, 3, 4]]), path))
            wait_for(lambda: in_flight(traced.server) == 1)
            assert ask(traced.server, path, ROWS).status == 503
            with RawClient(traced.server.url) as late:  # whose body comes after its head is refused
                head, body = post(infer_body([[1, 2, 3, 4]]), path).split(b"\r\n\r\n")
                late.send(head + b"\r\n\r\n")
                assert late.response()[0] == 503
                late.send(body)
        wait_for(lambda: in_flight(traced.server) == 0)
        *refusals, left = sorted(traced.spans(), key=lambda s: s.attributes["error.type"])
    assert [s.attributes["http.response.status_code"] for s in refusals] == [503, 503]
    assert (left.name, left.attributes["error.type"]) == ("POST", "canceled")
    for span in (*refusals, left):
        assert span.status.status_code.name == "ERROR"
        assert span.status.description == span.attributes["error.type"]


@pytest.mark.parametrize(
    ("word", "error", "status", "kind"),
    [("invalid", "", "UNSET", None), ("deadline", "504", "ERROR", "deadline")],
)
def test_mistakes_of_clients_that_the_model_finds_are_no_errors_of_the_server(
    word: str, error: str, status: str, kind: str | None
) -> None:
    exporter = sdk.InMemorySpanExporter()
    tracing = Tracing(exporter)
    tracing.record("POST", {}, 1, 2, {}, Ran("linear", "1", 1, 1, error=word), error)
    tracing.close()
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code.name, span.attributes.get("error.type")) == (status, kind)


class Collector(http.server.BaseHTTPRequestHandler):
    """Receives OTLP over HTTP, as collectors do."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The messages that a collector on loopback gets; servers that start now export to it."""
    handler = type("Receiving", (Collector,), {"bodies": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        yield handler.bodies
        collector.shutdown()


def test_a_collector_receives_them_before_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_SERVICE_NAME", "plates")
    with collecting(monkeypatch) as bodies:
        settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, trace="otlp")
        with Background(settings) as server:
            ask(server, "/v2/models/linear/infer", ROWS, traceparent=SAMPLED)
    (received,) = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    (resource,) = received.resource_spans
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert named["service.name"] == "plates"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v2/models/linear/infer", "compute", "queue"]


def test_a_collector_over_grpc_with_a_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    received: list[Any] = []

    class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: object) -> Any:
            received.append(request)
            return ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, trace="otlp")
    with Background(settings) as server:
        ask(server, "/v2/models/linear/infer", ROWS)  # nobody wants it sampled
        ask(server, "/v2/models/linear/infer", ROWS, traceparent=SAMPLED)
    collector.stop(None)
    (message,) = received
    spans = message.resource_spans[0].scope_spans[0].spans
    assert sorted(s.name for s in spans) == ["POST /v2/models/linear/infer", "compute", "queue"]
    assert {s.trace_id.hex() for s in spans} == {TRACE}


def test_a_collector_that_is_away_fails_no_request_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, trace="otlp")
    with Background(settings) as server:
        for _ in range(20):
            assert ask(server, "/v2/models/linear/infer", ROWS).status == 200
        wait_for(lambda: "says this once" in caplog.text)
    # The end has it tried again, in vain.
    assert caplog.text.count("the log says this once") == 1
    assert not any(r.exc_info or r.name.startswith("opentelemetry") for r in caplog.records)


def test_what_opentelemetry_logs_is_passed_on_once_while_it_is_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = logging.getLogger("opentelemetry.sdk.of.a.test")
    tracing = Tracing()
    theirs.error("the first %s", "time")
    theirs.error("the second time")
    tracing.close()
    assert [r.getMessage() for r in caplog.records] == [
        "tracing: the first time (the log says this once)"
    ]
    theirs.error("after the end")
    assert "after the end" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value", "error", "words"),
    [
        ("PROTOCOL", "http/json", EnvironmentProblem, "does not speak 'http/json'"),
        ("PROTOCOL", "grpc", DependencyMissing, "needs opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_an_exporter_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", value)
    with pytest.raises(error, match=words):
        Tracing()
    assert logging.getLogger("opentelemetry").handlers == []


@pytest.mark.slow
def test_every_worker_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    linear_bundle(tmp_path)
    body = infer_body([[1, 2, 3, 4]])
    with collecting(monkeypatch) as bodies:
        arguments = ("linear.edge", "--http-port", "0", "--workers", "2", "--trace", "otlp")
        with serving(*arguments, cwd=tmp_path) as process:
            with client_of_each(process) as each:
                for client in each.values():
                    assert ask_on(client, "POST", "/v2/models/linear/infer", body)[0] == 200
            assert process.stop() == 0
    received = [ExportTraceServiceRequest.FromString(each) for each in bodies]
    names = [
        sorted(s.name for scope in resource.scope_spans for s in scope.spans)
        for request in received
        for resource in request.resource_spans
    ]
    assert names == [["POST /v2/models/linear/infer", "compute", "queue"]] * 2


def test_nothing_is_imported_when_it_is_off(tmp_path: Path) -> None:
    script = (
        "import sys; from tests.serve.background import Background; from edgeserve.serve.settings.server import Settings\n"
        f"with Background(Settings(bundle={str(linear_bundle(tmp_path))!r}, http_port=0)): pass\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]", done.stderr[-500:]
