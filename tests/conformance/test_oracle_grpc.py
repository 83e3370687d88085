"""The same calls to a real Triton and to us over gRPC: the same answers, or a difference that is documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgeserve.wire import SERVICE, messages
from tests.conformance.models import LABELS
from tests.conformance.oracle import triton
from tests.conformance.process import Served

pytestmark = pytest.mark.slow
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text("utf-8")
X = np.float32([[1, -2, 3, 4], [0.5, 0, -1, 2]])
Message = Any


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    with (
        triton(tmp_path_factory.mktemp("triton")) as found,
        grpc.insecure_channel(found.grpc) as channel,
    ):
        yield channel


@pytest.fixture(scope="module")
def ours(linear_server: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(linear_server.grpc) as channel:
        yield channel


def request(**fields: Any) -> Message:
    """A raw request that is right, but for `fields`."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4]}
    plain = {"model_name": "linear", "inputs": [tensor], "raw_input_contents": [X.tobytes()]}
    return messages.ModelInferRequest(**{**plain, **fields})


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2, 4], **fields}


def typed(**contents: Any) -> Message:
    return request(inputs=[tensor(contents=contents)], raw_input_contents=[])


def with_parameter(name: str, **value: Any) -> Message:
    message = request()
    parameter = message.parameters[name]
    for field, given in value.items():
        setattr(parameter, field, given)
    return message


def output(name: str = "y", **parameters: Any) -> Message:
    message = request()
    wanted = message.outputs.add(name=name)
    for key, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(wanted.parameters[key], field, value)
    return message


def _setting(message: Message, name: str, value: Any) -> Message:
    if isinstance(value, list):
        message.settings[name].value.extend(value)
    else:
        message.settings[name].bool_param = value
    return message


class Case(msgspec.Struct, frozen=True):
    """A call. `ours` and `triton` are the codes where they differ, `why` what the documentation says of it."""

    name: str
    message: Any
    method: str = "ModelInfer"
    triton: str = ""
    ours: str = ""
    why: str = ""

    def __str__(self) -> str:
        return self.name


BIG = np.zeros((65, 4), np.float32)
SAME = [
    Case("raw", request()),
    Case("typed", typed(fp32_contents=X.ravel().tolist())),
    Case("id", request(id="seven")),
    Case("named output", output()),
    Case("version", request(model_version="1")),
    Case("classification", output(classification=2)),
    Case("more classes than there are", output(classification=9)),
    Case("timeout", with_parameter("timeout", int64_param=10_000_000)),
    Case("unknown parameter", with_parameter("colour", string_param="red")),
    Case("unknown model", request(model_name="nobody")),
    Case("no model", request(model_name="")),
    Case("unknown version", request(model_version="9")),
    Case("version that is no number", request(model_version="x")),
    Case("unknown output", output("z")),
    Case("unknown input", request(inputs=[tensor(name="z")])),
    Case("missing input", request(inputs=[], raw_input_contents=[])),
    Case("input twice", request(inputs=[tensor()] * 2, raw_input_contents=[X.tobytes()] * 2)),
    Case("wrong datatype", request(inputs=[tensor(datatype="INT32")])),
    Case("unknown datatype", request(inputs=[tensor(datatype="FP31")])),
    Case("wrong shape", request(inputs=[tensor(shape=[4, 2])])),
    Case("negative shape", request(inputs=[tensor(shape=[-2, 4])])),
    Case("no shape", request(inputs=[{"name": "x", "datatype": "FP32"}])),
    Case(
        "batch too large",
        request(inputs=[tensor(shape=[65, 4])], raw_input_contents=[BIG.tobytes()]),
    ),
    Case("raw too short", request(raw_input_contents=[X.tobytes()[:-1]])),
    Case("raw too long", request(raw_input_contents=[X.tobytes() + b"1234"])),
    Case("raw missing", request(raw_input_contents=[])),
    Case("raw and contents", request(inputs=[tensor(contents={"fp32_contents": [1.0] * 8})])),
    Case("contents of another type", typed(int_contents=[1] * 8)),
    Case("too few elements", typed(fp32_contents=[1.0])),
    Case("too many elements", typed(fp32_contents=[1.0] * 9)),
    Case("reserved parameter", with_parameter("triton_x", int64_param=1)),
    Case("unknown region", output(shared_memory_region="none", shared_memory_byte_size=24)),
    Case("live", messages.ServerLiveRequest(), "ServerLive"),
    Case("ready", messages.ServerReadyRequest(), "ServerReady"),
    Case("model ready", messages.ModelReadyRequest(name="linear"), "ModelReady"),
    Case("unknown model ready", messages.ModelReadyRequest(name="nobody"), "ModelReady"),
    Case("metadata", messages.ModelMetadataRequest(name="linear"), "ModelMetadata"),
    Case("unknown model's metadata", messages.ModelMetadataRequest(name="nobody"), "ModelMetadata"),
    Case("unknown model's config", messages.ModelConfigRequest(name="nobody"), "ModelConfig"),
    Case("index", messages.RepositoryIndexRequest(), "RepositoryIndex"),
    Case("statistics", messages.ModelStatisticsRequest(name="linear"), "ModelStatistics"),
    Case("regions", messages.SystemSharedMemoryStatusRequest(), "SystemSharedMemoryStatus"),
    Case(
        "unknown region's status",
        messages.SystemSharedMemoryStatusRequest(name="none"),
        "SystemSharedMemoryStatus",
    ),
    Case(
        "unregister what is not registered",
        messages.SystemSharedMemoryUnregisterRequest(name="none"),
        "SystemSharedMemoryUnregister",
    ),
    Case("trace settings", messages.TraceSettingRequest(), "TraceSetting"),
    Case("log settings", messages.LogSettingsRequest(), "LogSettings"),
]


READ_ONLY = "changes to trace and log settings"
SURPLUS = "extra tensors"
BETTER = [
    Case(
        "unknown model's statistics",
        messages.ModelStatisticsRequest(name="nobody"),
        "ModelStatistics",
        triton="INVALID_ARGUMENT",
        ours="NOT_FOUND",
        why="statistics of an unknown model",
    ),
    Case(
        "surplus raw tensor",
        request(raw_input_contents=[X.tobytes()] * 2),
        triton="OK",
        ours="INVALID_ARGUMENT",
        why=SURPLUS,
    ),
    Case(
        "trace settings changed",
        _setting(messages.TraceSettingRequest(), "trace_rate", ["500"]),
        "TraceSetting",
        triton="OK",
        ours="PERMISSION_DENIED",
        why=READ_ONLY,
    ),
    Case(
        "log settings changed",
        _setting(messages.LogSettingsRequest(), "log_info", True),
        "LogSettings",
        triton="OK",
        ours="PERMISSION_DENIED",
        why=READ_ONLY,
    ),
]


def ask(channel: grpc.Channel, case: Case) -> tuple[str, Any]:
    """The code, and the answer or what was said."""
    call = channel.unary_unary(f"/{SERVICE}/{case.method}").future(case.message.SerializeToString())
    code = call.code().name
    if code != "OK":
        return code, call.details()
    name = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[case.method]
    return code, getattr(messages, name.output_type.name).FromString(call.result())


@pytest.mark.parametrize("case", SAME, ids=str)
def test_the_same_call_has_the_same_answer(
    oracle: grpc.Channel, ours: grpc.Channel, case: Case
) -> None:
    theirs, wanted = ask(oracle, case)
    code, answer = ask(ours, case)
    assert code == theirs, (answer, wanted)
    if code != "OK":
        assert answer
    elif case.method == "ModelInfer":
        same_answer(answer, wanted)
    else:
        compare = COMPARED.get(case.method)
        if compare is not None:
            assert compare(answer) == compare(wanted)


def same_answer(answer: Message, wanted: Message) -> None:
    for field in ("model_name", "model_version", "id"):
        assert getattr(answer, field) == getattr(wanted, field)
    assert len(answer.raw_output_contents) == len(wanted.raw_output_contents) == 1
    for got, expected in zip(answer.outputs, wanted.outputs, strict=True):
        assert (got.name, got.datatype) == (expected.name, expected.datatype)
        assert list(got.shape) == list(expected.shape)
    mine, theirs = answer.raw_output_contents[0], wanted.raw_output_contents[0]
    if answer.outputs[0].datatype == "BYTES":
        assert mine == theirs
        assert any(label.encode() in mine for label in LABELS)
    else:
        np.testing.assert_allclose(*(np.frombuffer(b, "<f4") for b in (mine, theirs)), rtol=1e-5)


def tensors(found: Any) -> list[tuple[str, str, list[int]]]:
    return [(t.name, t.datatype, list(t.shape)) for t in found]


# What the answers of the other methods must agree in.
COMPARED: dict[str, Callable[[Any], object]] = {
    "ServerLive": lambda m: m.live,
    "ServerReady": lambda m: m.ready,
    "ModelReady": lambda m: m.ready,
    "ModelMetadata": lambda m: (
        m.name,
        list(m.versions),
        tensors(m.inputs),
        tensors(m.outputs),
    ),
    "RepositoryIndex": lambda m: [(e.name, e.version, e.state) for e in m.models],
    "ModelStatistics": lambda m: [(s.name, s.version) for s in m.model_stats],
    "SystemSharedMemoryStatus": lambda m: list(m.regions),
    "TraceSetting": lambda m: sorted(m.settings),
    "LogSettings": lambda m: sorted(m.settings),
}


@pytest.mark.parametrize("case", BETTER, ids=str)
def test_where_we_differ_it_is_documented(
    oracle: grpc.Channel, ours: grpc.Channel, case: Case
) -> None:
    assert ask(oracle, case)[0] == case.triton
    code, said = ask(ours, case)
    assert (code, bool(said)) == (case.ours, True)
    assert case.why in DOCUMENTED


def test_streams_go_on_alike(oracle: grpc.Channel, ours: grpc.Channel) -> None:
    sent = [request(id="1"), request(id="bad", model_name="nobody"), request(id="2")]
    found = []
    for channel in (oracle, ours):
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = call(iter([m.SerializeToString() for m in sent]), timeout=30)
        found.append([messages.ModelStreamInferResponse.FromString(a) for a in answers])
    for answers in found:
        by_id = {a.infer_response.id: a for a in answers}
        assert by_id.keys() == {"1", "bad", "2"}
        assert "nobody" in by_id["bad"].error_message
        for identity in ("1", "2"):
            assert not by_id[identity].error_message
            final = by_id[identity].infer_response.parameters["triton_final_response"]
            assert final.bool_param
    mine, theirs = ({a.infer_response.id: a.infer_response for a in f} for f in reversed(found))
    for identity in ("1", "2"):
        same_answer(mine[identity], theirs[identity])


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_read_alike(
    oracle: grpc.Channel, ours: grpc.Channel, algorithm: grpc.Compression
) -> None:
    found = []
    for channel in (oracle, ours):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = infer(request().SerializeToString(), compression=algorithm)
        found.append(messages.ModelInferResponse.FromString(answer))
    same_answer(*reversed(found))


def test_the_standard_health_service_says_the_same(
    oracle: grpc.Channel, ours: grpc.Channel
) -> None:
    for service in ("", SERVICE):
        statuses = [
            health_pb2_grpc.HealthStub(channel)
            .Check(health_pb2.HealthCheckRequest(service=service))
            .status
            for channel in (oracle, ours)
        ]
        assert statuses == [health_pb2.HealthCheckResponse.SERVING] * 2
