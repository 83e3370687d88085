"""The control plane over real sockets: repository, shared memory, trace and log settings, statistics."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgeserve.serve.settings.server import Settings
from tests.bundles import linear
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post


@pytest.fixture(scope="module")
def managed(bundle: Path) -> Iterator[Background]:
    settings = Settings(
        bundle=str(bundle), http_port=0, model_control=True, shared_memory="edgeserve-test-"
    )
    with Background(settings) as running:
        yield running


@pytest.fixture
def tritonclient(managed: Background) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(managed.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(f"edgeserve-test-{uuid.uuid4().hex}", create=True, size=256)
    yield made
    made.close()
    made.unlink()


def ask(url: str, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, Any]:
    lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers]
    if not any(h.startswith("Host:") for h in headers):
        lines.append("Host: localhost")
    with RawClient(url) as client:
        client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        status, _, answer = client.response()
    return status, json.loads(answer) if answer else None


def test_tritonclient_manages_the_repository(
    tritonclient: triton.InferenceServerClient, managed: Background
) -> None:
    (entry,) = tritonclient.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == ("linear", "1", "READY")
    tritonclient.unload_model("linear")
    assert not tritonclient.is_model_ready("linear")
    assert tritonclient.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
    assert ask(managed.url, "POST", "/v2/repository/index", b'{"ready":true}') == (200, [])
    status, answer = ask(managed.url, "POST", "/v2/models/linear/infer", infer_body([[1, 2, 3, 4]]))
    assert status == 503
    assert "unloaded" in answer["error"]
    tritonclient.load_model("linear")
    tritonclient.load_model("linear")
    assert tritonclient.is_model_ready("linear")
    tritonclient.unload_model("nobody")


def test_a_connection_that_used_a_model_uses_it_after_a_reload(managed: Background) -> None:
    """The route of a repeated head is kept; the model it leads to is not."""
    body = infer_body([[1, 2, 3, 4]])
    with RawClient(managed.url) as client:
        client.send(post(body))
        assert client.response()[0] == 200
        for change, status in (("unload", 503), ("load", 200)):
            assert ask(managed.url, "POST", f"/v2/repository/models/linear/{change}")[0] == 200
            client.send(post(body))
            assert client.response()[0] == status


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v2/repository/models/nobody/load", b"", 404, "failed to load: no model"),
        ("POST", "/v2/repository/models/..%2f..%2fetc/load", b"", 400, "model name"),
        ("POST", "/v2/repository/models/%2e%2e/load", b"", 400, "model name"),
        ("POST", "/v2/repository/models/a%00b/load", b"", 400, "model name"),
        ("POST", "/v2/repository/models/" + "x" * 129 + "/unload", b"", 400, "model name"),
        ("POST", "/v2/repository/models/linear/load", b"{", 400, "the body"),
        ("POST", "/v2/repository/models/linear/load", b"[]", 400, "the body"),
        (
            "POST",
            "/v2/repository/models/linear/load",
            b'{"parameters":{"config":"{}"}}',
            400,
            "'config'",
        ),
        (
            "POST",
            "/v2/repository/models/linear/load",
            b'{"parameters":{"file:1/model.onnx":"AAAA"}}',
            400,
            "file:1/model.onnx",
        ),
        ("POST", "/v2/repository/models/linear/unload", b'{"parameters":{"x":1}}', 400, "'x'"),
        ("POST", "/v2/repository/other/index", b"", 400, "has one"),
        ("GET", "/v2/repository/index", b"", 405, "use POST"),
        ("GET", "/v2/repository/models/linear/load", b"", 405, "use POST"),
        ("POST", "/v2/repository/index", b"[" * 50, 400, "nested deeper"),
        ("POST", "/v2/repository/index", b"{" * (1 << 20) + b"x", 413, "the limit is"),
        ("POST", "/v2/logging", b'{"log_file":"/etc/cron.d/x"}', 405, "read-only"),
        ("POST", "/v2/trace/setting", b'{"trace_file":"/tmp/x"}', 405, "read-only"),
        ("POST", "/v2/models/linear/trace/setting", b"{}", 405, "read-only"),
        ("GET", "/v2/models/nobody/trace/setting", b"", 404, "unknown model"),
        ("GET", "/v2/cudasharedmemory/region/x/status", b"", 404, "no CUDA memory region"),
        ("POST", "/v2/cudasharedmemory/status", b"", 405, "use GET"),
        ("GET", "/v2/cudasharedmemory/unregister", b"", 405, "use POST"),
        ("POST", "/v2/cudasharedmemory/region/x/register", b"{}", 400, "CUDA"),
        ("POST", "/v2/systemsharedmemory/register", b"{}", 400, "region"),
        ("POST", "/v2/systemsharedmemory/region/x/register", b"{}", 400, "key"),
        ("GET", "/v2/systemsharedmemory/region/x/status", b"", 404, "no shared memory region"),
        ("GET", "/v2/systemsharedmemory/region/x/register", b"", 405, "use POST"),
        ("POST", "/v2/systemsharedmemory/status", b"", 405, "use GET"),
        ("GET", "/v2/models/nobody/stats", b"", 404, "unknown model"),
    ],
)
def test_wrong_requests_say_why(
    managed: Background, method: str, path: str, body: bytes, status: int, words: str
) -> None:
    got, answer = ask(managed.url, method, path, body)
    assert (got, words in answer["error"]) == (status, True), answer


def test_settings_are_shown(
    tritonclient: triton.InferenceServerClient, managed: Background
) -> None:
    assert tritonclient.get_trace_settings()["trace_level"] == ["OFF"]
    assert tritonclient.get_trace_settings(model_name="linear")["trace_rate"] == "1000"
    assert tritonclient.get_log_settings()["log_info"] is True
    with pytest.raises(InferenceServerException, match="read-only"):
        tritonclient.update_log_settings({"log_verbose_level": 1})


def test_statistics_count(tritonclient: triton.InferenceServerClient, managed: Background) -> None:
    def stats() -> dict[str, Any]:
        (only,) = tritonclient.get_inference_statistics("linear")["model_stats"]
        assert tritonclient.get_inference_statistics()["model_stats"][0]["name"] == "linear"
        return only

    before = stats()
    ask(managed.url, "POST", "/v2/models/linear/infer", infer_body([[1, 2, 3, 4]] * 5))
    after = stats()
    assert after["inference_count"] == before["inference_count"] + 5
    assert after["execution_count"] == before["execution_count"] + 1
    success = after["inference_stats"]["success"]
    assert success["count"] == before["inference_stats"]["success"]["count"] + 1
    assert success["ns"] > 0


def test_tensors_in_shared_memory(
    tritonclient: triton.InferenceServerClient, segment: Segment
) -> None:
    x = np.float32([[1, 2, 3, 4], [4, 3, 2, 1]])
    segment.buf[32:64] = x.tobytes()
    tritonclient.register_system_shared_memory("in", segment.name, 32, offset=32)
    tritonclient.register_system_shared_memory("out", f"/{segment.name}", 64, offset=128)
    assert {r["name"] for r in tritonclient.get_system_shared_memory_status()} == {"in", "out"}
    given = triton.InferInput("x", x.shape, "FP32")
    given.set_shared_memory("in", 32)
    asked = triton.InferRequestedOutput("y")
    asked.set_shared_memory("out", 24, offset=8)
    answer = tritonclient.infer("linear", [given], outputs=[asked]).get_output("y")
    assert answer["parameters"] == {
        "shared_memory_region": "out",
        "shared_memory_offset": 8,
        "shared_memory_byte_size": 24,
        "binary_data_size": 0,
    }
    assert "data" not in answer
    got = np.frombuffer(bytes(segment.buf[136:160]), np.float32).reshape(2, 3)
    np.testing.assert_allclose(got, linear(x), rtol=1e-5)

    given.set_shared_memory("in", 32, offset=8)
    with pytest.raises(InferenceServerException, match="expected at most 32 bytes"):
        tritonclient.infer("linear", [given])
    given = triton.InferInput("x", x.shape, "FP32")  # the client keeps an offset
    given.set_shared_memory("in", 16)
    with pytest.raises(InferenceServerException, match="expected 32 bytes"):
        tritonclient.infer("linear", [given])
    given.set_shared_memory("in", 32)
    asked = triton.InferRequestedOutput("y")
    asked.set_shared_memory("out", 8)
    with pytest.raises(InferenceServerException, match="expected 8 bytes of shared memory"):
        tritonclient.infer("linear", [given], outputs=[asked])
    given.set_shared_memory("elsewhere", 32)
    with pytest.raises(InferenceServerException, match="no shared memory region"):
        tritonclient.infer("linear", [given])
    tritonclient.unregister_system_shared_memory("in")
    tritonclient.unregister_system_shared_memory()
    assert tritonclient.get_system_shared_memory_status() == []


def test_what_is_not_switched_on_is_off(server: Background) -> None:
    for method, path in (
        ("POST", "/v2/repository/models/linear/load"),
        ("POST", "/v2/repository/models/linear/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("POST", "/v2/systemsharedmemory/unregister"),
    ):
        assert ask(server.url, method, path, b"")[0] == 403
    assert ask(server.url, "POST", "/v2/repository/index")[0] == 200
    body = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1, 4], "datatype": "FP32",
                 "parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 16}}
            ]
        }
    ).encode()  # fmt: skip
    assert ask(server.url, "POST", "/v2/models/linear/infer", body)[0] == 403


CHANGES = (
    ("POST", "/v2/repository/models/linear/load"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/unregister"),
)


def test_pages_of_other_sites_control_nothing(managed: Background) -> None:
    """DNS rebinding: the browser connects to this machine, but names the attacker's host."""
    for method, path in CHANGES:
        assert ask(managed.url, method, path, b"", "Host: evil.example")[0] == 403
        assert ask(managed.url, method, path, b"", "Host: localhost.evil.example:80")[0] == 403
        assert ask(managed.url, method, path, b"", "Origin: http://evil.example")[0] == 403
        assert ask(managed.url, method, path, b"", "Origin: null")[0] == 403
        assert ask(managed.url, method, path, b"", "Origin: http://localhost:3000")[0] == 200
    assert ask(managed.url, "GET", "/v2/health/live", b"", "Host: evil.example")[0] == 200


def test_a_control_port_takes_the_control_plane_off_the_data_port(bundle: Path) -> None:
    settings = Settings(
        bundle=str(bundle), http_port=0, control_port=0, model_control=True, shared_memory="edge-"
    )
    with Background(settings) as server:
        control = server.started.control_url
        assert control is not None
        for method, path in CHANGES:
            assert ask(server.url, method, path)[0] == 403
            assert ask(control, method, path)[0] == 200
        assert ask(control, "GET", "/v2/health/ready")[0] == 200
