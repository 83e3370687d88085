"""The bound on requests that are handled at one time, over all models and both protocols."""

from __future__ import annotations

import json
import re
import socket
import struct
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.slow import slow_bundle
from tests.waiting import wait_for

SLOW = post(infer_body([[1, 2, 3, 4]]), "/v2/models/slow/infer")
LINEAR = post(infer_body([[1, 2, 3, 4]]), "/v2/models/linear/infer")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """`slow` holds requests for a while, hoping for company; `linear` answers on the event loop."""
    folder = tmp_path_factory.mktemp("models")
    settings = Settings(
        bundles=(str(slow_bundle(folder)), str(linear_bundle(folder))),
        http_port=0,
        grpc_port=0,
        threads=1,
        batch_delay=1.5,
        metrics_compat="triton",
        limits=Limits(in_flight=2),
    )
    with Background(settings) as running:
        yield running


def metric(server: Background, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def in_flight(server: Background) -> float:
    return metric(server, "edgeserve_in_flight_requests")


def refused(server: Background, model: str) -> float:
    labels = f'{{model="{model}",reason="in_flight",version="1"}}'
    return metric(server, f"edgeserve_request_failures_total{labels}")


def test_more_than_that_is_refused_over_both_protocols_and_the_others_are_answered(
    server: Background,
) -> None:
    assert server.started.grpc is not None
    before = {m: refused(server, m) for m in ("slow", "linear")}
    with (
        RawClient(server.url) as first,
        RawClient(server.url) as third,
        grpc.insecure_channel(server.started.grpc) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        second = infer.future(_message("slow"))
        wait_for(lambda: in_flight(server) == 1)
        first.send(SLOW)
        wait_for(lambda: in_flight(server) == 2)
        for request in (SLOW, LINEAR):
            third.send(request)
            status, headers, body = third.response()
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body) == {"error": "2 requests are being handled already"}
        late = infer.future(_message("slow"))
        assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert late.details() == "2 requests are being handled already"
        third.send(b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n")
        assert third.response()[0] == 200
        assert first.response()[0] == 200
        assert second.code() is grpc.StatusCode.OK
        assert in_flight(server) == 0
        third.send(LINEAR)
        assert third.response()[0] == 200
    assert refused(server, "slow") == before["slow"] + 2
    assert refused(server, "linear") == before["linear"] + 1
    rejected = 'nv_inference_request_failure{model="slow",reason="REJECTED",version="1"}'
    assert metric(server, rejected) == before["slow"] + 2


def test_clients_that_leave_give_their_places_back(server: Background) -> None:
    assert server.started.grpc is not None
    with grpc.insecure_channel(server.started.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(_message("slow"))
        with RawClient(server.url) as client:
            client.send(SLOW)
            wait_for(lambda: in_flight(server) == 2)
            # A reset: a closed writing half alone may still wait for its answer.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_for(lambda: in_flight(server) == 1)
        call.cancel()
        wait_for(lambda: in_flight(server) == 0)
    with RawClient(server.url) as client:
        client.send(SLOW)
        assert client.response()[0] == 200


def _message(model: str) -> bytes:
    request = messages.ModelInferRequest(model_name=model, raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return bytes(request.SerializeToString())


def test_the_limit_must_be_a_number_of_one_or_more() -> None:
    with pytest.raises(
        UsageError, match=r"limits\.in_flight 0 is not a valid number: expected 1 or more"
    ):
        Settings(bundle="m.edge", limits=Limits(in_flight=0)).check()
