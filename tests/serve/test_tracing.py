"""Traces of inferences: spans of request, queue and compute, below the client's own; exported over OTLP."""

from __future__ import annotations

import gzip
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest

from edgeserve.serve import app
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.tracing import Tracing
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear_bundle
from tests.serve.background import Background
from tests.serve.protocols.asking import ask
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
        self._tracing._provider.force_flush()
        found = sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time)
        self._exporter.clear()
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    bundle = linear_bundle(tmp_path_factory.mktemp("traced"))
    exporter = sdk.InMemorySpanExporter()
    tracing = Tracing(exporter)
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, protocols="tfserving", trace="otlp"
    )
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
    wait_for(lambda: len(found.__iadd__(traced.spans())) >= 4)
    good, bad = [s for s in found if s.name == f"{SERVICE}/ModelInfer"]
    assert f"{good.parent.span_id:016x}" == PARENT
    assert good.attributes["rpc.response.status_code"] == "OK"
    assert good.attributes["edgeserve.device"] == "cpu"
    assert {s.name for s in found if s.parent and s.parent.span_id == good.context.span_id} == {
        "queue",
        "compute",
    }
    assert bad.attributes["rpc.response.status_code"] == "NOT_FOUND"


class Collector(http.server.BaseHTTPRequestHandler):
    """Receives OTLP over HTTP, as collectors do."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def test_a_collector_receives_them_before_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}"
        )
        monkeypatch.setenv("OTEL_SERVICE_NAME", "plates")
        settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, trace="otlp")
        with Background(settings) as server:
            ask(server, "/v2/models/linear/infer", ROWS, traceparent=SAMPLED)
        collector.shutdown()
    (received,) = [ExportTraceServiceRequest.FromString(body) for body in Collector.bodies]
    (resource,) = received.resource_spans
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert named["service.name"] == "plates"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v2/models/linear/infer", "compute", "queue"]


def test_a_collector_that_is_away_fails_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, trace="otlp")
    with Background(settings) as server:
        for _ in range(20):
            assert ask(server, "/v2/models/linear/infer", ROWS).status == 200


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
