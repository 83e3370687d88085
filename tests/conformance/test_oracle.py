"""The same requests to a real Triton and to us: the same answers, or a difference that is documented."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.conformance.models import LABELS
from tests.conformance.oracle import triton
from tests.conformance.process import Served

pytestmark = pytest.mark.slow
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text("utf-8")
INFER = "/v2/models/linear/infer"
X = np.float32([[1, -2, 3, 4], [0.5, 0, -1, 2]])


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with triton(tmp_path_factory.mktemp("triton")) as found:
        yield found.http


class Case(msgspec.Struct, frozen=True):
    """A request. `ours` and `triton` are the statuses where they differ, `why` what the documentation
    says of it."""

    name: str
    body: bytes | None
    path: str = INFER
    headers: dict[str, str] = {}
    method: str = "POST"
    triton: int | None = None
    ours: int | None = None
    why: str = ""

    def __str__(self) -> str:
        return self.name


def tensor(**changes: Any) -> dict[str, Any]:
    entry = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.ravel().tolist()}
    return {k: v for k, v in {**entry, **changes}.items() if v is not None}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [tensor()], **more}).encode()


def binary(blob: bytes = X.tobytes(), size: int | None = None, **more: Any) -> tuple[bytes, int]:
    entry = tensor(data=None, parameters={"binary_data_size": len(blob) if size is None else size})
    head = request(entry, **more)
    return head + blob, len(head)


def with_binary(name: str, blob: bytes = X.tobytes(), size: int | None = None, **more: Any) -> Case:
    body, length = binary(blob, size)
    return Case(name, body, headers={"Inference-Header-Content-Length": str(length)}, **more)


def classified(count: int) -> bytes:
    return request(outputs=[{"name": "y", "parameters": {"classification": count}}])


CLIENT = "errors in a request"
SAME = [
    Case("flat", request()),
    Case("nested", request(tensor(data=X.tolist()))),
    Case("id", request(id="seven")),
    Case("empty id", request(id="")),
    Case(
        "sequence of a model without a state",
        request(parameters={"sequence_id": 7, "sequence_start": True}),
    ),
    Case("CUDA regions", None, "/v2/cudasharedmemory/status", method="GET"),
    Case("unregister of no CUDA region", b"", "/v2/cudasharedmemory/unregister"),
    Case("unknown CUDA region", None, "/v2/cudasharedmemory/region/a/status", method="GET"),
    Case("empty outputs", request(outputs=[])),
    Case("named output", request(outputs=[{"name": "y"}])),
    Case("version", request(), path="/v2/models/linear/versions/1/infer"),
    Case("classification", classified(2)),
    Case("more classes than there are", classified(9)),
    Case("integers for floats", request(tensor(data=[1, 2, 3, 4, 5, 6, 7, 8]))),
    with_binary("binary input"),
    Case("gzip", gzip.compress(request(), mtime=0), headers={"Content-Encoding": "gzip"}),
    Case("unknown model", request(), path="/v2/models/nobody/infer"),
    Case("unknown version", request(), path="/v2/models/linear/versions/9/infer"),
    Case("unknown output", request(outputs=[{"name": "z"}])),
    Case("unknown input", request(tensor(name="z"))),
    Case("missing input", b'{"inputs": []}'),
    Case("input twice", request(tensor(), tensor())),
    Case("wrong datatype", request(tensor(datatype="INT32", data=[1] * 8))),
    Case("wrong shape", request(tensor(shape=[4, 2]))),
    Case("batch too large", request(tensor(shape=[65, 4], data=[0.0] * 260))),
    with_binary("binary too short", X.tobytes()[:-1]),
    with_binary("binary trailing bytes", X.tobytes() + b"1234", size=32),
    Case("reserved parameter", request(parameters={"triton_x": 1})),
    Case("negative header length", request(), headers={"Inference-Header-Content-Length": "-1"}),
    Case("header length too long", request(), headers={"Inference-Header-Content-Length": "9999"}),
    Case("live", None, "/v2/health/live", method="GET"),
    Case("ready", None, "/v2/health/ready", method="GET"),
    Case("model ready", None, "/v2/models/linear/ready", method="GET"),
    Case("unknown model's metadata", None, "/v2/models/nobody", method="GET"),
    Case("server metadata", None, "/v2", method="GET"),
    Case("infer by GET", None, INFER, method="GET"),
    Case("version that is no number", request(), path="/v2/models/linear/versions/a/infer"),
]
BETTER = [
    Case("no JSON", b"{", triton=500, ours=400, why=CLIENT),
    Case("no shape", request(tensor(shape=None)), triton=500, ours=400, why=CLIENT),
    Case("no name", request(tensor(name=None)), triton=500, ours=400, why=CLIENT),
    Case("no datatype", request(tensor(datatype=None)), triton=500, ours=400, why=CLIENT),
    Case("too few elements", request(tensor(data=[1.0])), triton=500, ours=400, why=CLIENT),
    Case("text for floats", request(tensor(data=["a"] * 8)), triton=500, ours=400, why=CLIENT),
    Case("negative shape", request(tensor(shape=[-2, 4])), triton=500, ours=400, why=CLIENT),
    Case("boolean for floats", request(tensor(data=[True] * 8)), triton=500, ours=400, why=CLIENT),
    Case(
        "lists of different lengths",
        request(tensor(data=[[1, 2, 3], [4, 5, 6, 7, 8]])),
        triton=200,
        ours=400,
        why="lists of different lengths",
    ),
    Case(
        "readiness of an unknown version",
        None,
        "/v2/models/linear/versions/9/ready",
        method="GET",
        triton=400,
        ours=404,
        why="readiness of an unknown model or version",
    ),
    Case("id that is a number", request(id=7), triton=500, ours=400, why=CLIENT),
    Case(
        "unknown coding",
        request(),
        headers={"Content-Encoding": "br"},
        triton=501,
        ours=415,
        why="unknown content codings",
    ),
    Case(
        "unknown model's statistics",
        None,
        "/v2/models/nobody/stats",
        method="GET",
        triton=400,
        ours=404,
        why="statistics of an unknown model",
    ),
    Case(
        "trace settings changed",
        b'{"trace_rate": "500"}',
        "/v2/trace/setting",
        triton=200,
        ours=405,
        why="changes to trace and log settings",
    ),
]


def ask(address: str, case: Case) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(case.method, case.path, case.body, case.headers)
        answer = connection.getresponse()
        head = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, head, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("case", SAME, ids=str)
def test_the_same_request_has_the_same_answer(
    oracle: str, linear_server: Served, case: Case
) -> None:
    theirs, _, their_body = ask(oracle, case)
    ours, _, our_body = ask(linear_server.http, case)
    assert ours == theirs, (our_body, their_body)
    if theirs != 200:
        assert set(json.loads(our_body)) >= {"error"}
        return
    if not case.path.endswith("/infer"):
        return
    mine, wanted = json.loads(our_body), json.loads(their_body)
    assert mine.get("id") == wanted.get("id")
    assert (mine["model_name"], mine["model_version"]) == ("linear", "1")
    assert ("id" in mine) == ("id" in wanted)
    for got, expected in zip(mine["outputs"], wanted["outputs"], strict=True):
        for key in ("name", "datatype", "shape"):
            assert got[key] == expected[key]
        if got["datatype"] == "BYTES":
            assert got["data"] == expected["data"]
            assert all(t.rsplit(":", 1)[1] in LABELS for t in got["data"])
        else:
            np.testing.assert_allclose(got["data"], expected["data"], rtol=1e-5)


@pytest.mark.parametrize("case", BETTER, ids=str)
def test_where_we_differ_it_is_documented(oracle: str, linear_server: Served, case: Case) -> None:
    assert ask(oracle, case)[0] == case.triton
    status, head, body = ask(linear_server.http, case)
    assert status == case.ours
    assert head["content-type"].startswith("application/json")
    assert json.loads(body)["error"]
    assert case.why in DOCUMENTED


@pytest.mark.parametrize("requested", ["output", "request"])
def test_binary_answers_have_the_same_bytes(
    oracle: str, linear_server: Served, requested: str
) -> None:
    more: dict[str, Any] = {"parameters": {"binary_data_output": True}}
    if requested == "output":
        more = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    body, length = binary(**more)
    case = Case("binary", body, headers={"Inference-Header-Content-Length": str(length)})
    found = []
    for address in (oracle, linear_server.http):
        status, head, answer = ask(address, case)
        assert status == 200
        assert head["content-type"] == "application/octet-stream"
        split = int(head["inference-header-content-length"])
        described = json.loads(answer[:split])["outputs"][0]
        assert described["parameters"] == {"binary_data_size": 24}
        found.append(np.frombuffer(answer[split:], "<f4"))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("default", [True, False])
def test_what_an_output_says_of_itself_counts(
    oracle: str, linear_server: Served, own: bool, default: bool
) -> None:
    wanted = [{"name": "y", "parameters": {"binary_data": own}}]
    body = request(outputs=wanted, parameters={"binary_data_output": default})
    for address in (oracle, linear_server.http):
        status, head, _ = ask(address, Case("binary or not", body))
        assert (status, "inference-header-content-length" in head) == (200, own)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_alike(oracle: str, linear_server: Served, coding: str) -> None:
    rows = tensor(shape=[64, 4], data=np.linspace(-1, 1, 256).tolist())
    case = Case("compressed", request(rows), headers={"Accept-Encoding": coding})
    for address in (oracle, linear_server.http):
        assert ask(address, case)[1].get("content-encoding") == coding


def test_metadata_and_config_say_the_same(oracle: str, linear_server: Served) -> None:
    for path, fields in (
        ("/v2/models/linear", ("name", "versions", "inputs", "outputs")),
        ("/v2/models/linear/config", ("name", "max_batch_size")),
    ):
        case = Case("about", None, path, method="GET")
        theirs, ours = (json.loads(ask(a, case)[2]) for a in (oracle, linear_server.http))
        assert {f: ours[f] for f in fields} == {f: theirs[f] for f in fields}
