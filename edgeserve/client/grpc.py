"""The Open Inference Protocol v2 over gRPC. Needs the extra `grpc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import SplitResult

import grpc  # noqa: TID253 - imported where a grpc:// URL is asked

from edgeserve.client import problems
from edgeserve.client.model import (
    Access,
    Answer,
    ModelInfo,
    ModelStatus,
    Parameter,
    Question,
    ServerInfo,
    Statistics,
    WorkerStatus,
    model_info,
    where_from,
)
from edgeserve.client.tensors import tensor_from_bytes
from edgeserve.errors import EdgeServeError, UsageError
from edgeserve.tensors import dtype_name
from edgeserve.wire import SERVICE, binary, messages

if TYPE_CHECKING:
    from edgeserve.wire.messages import ModelInferRequest, ModelStatistics

_UNLIMITED: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_KINDS: Final[dict[type, str]] = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


class GrpcClient:
    """One channel; a `Client`."""

    def __init__(self, url: SplitResult, access: Access) -> None:
        self._url = url.geturl()
        self._timeout_s = access.timeout_s
        self._metadata = [("authorization", f"Bearer {access.api_key}")] if access.api_key else []
        if url.scheme == "grpcs":
            self._channel = grpc.secure_channel(url.netloc, _tls(access), _UNLIMITED)
        else:
            self._channel = grpc.insecure_channel(url.netloc, _UNLIMITED)

    # about the server

    def server(self) -> ServerInfo:
        told = self._call("ServerMetadata", messages.ServerMetadataRequest())
        return ServerInfo(told.name, told.version, tuple(told.extensions))

    def ready(self) -> bool:
        return bool(self._call("ServerReady", messages.ServerReadyRequest()).ready)

    def workers(self) -> list[WorkerStatus]:
        """None: the protocol does not tell."""
        return []

    def models(self) -> list[ModelStatus]:
        told = self._call("ModelStatistics", messages.ModelStatisticsRequest())
        statistics = {(s.name, s.version): _statistics(s) for s in told.model_stats}
        index = self._call("RepositoryIndex", messages.RepositoryIndexRequest())
        return [
            ModelStatus(
                name=m.name,
                version=m.version,
                ready=m.state == "READY",
                reason=m.reason,
                statistics=statistics.get((m.name, m.version)),
            )
            for m in index.models
        ]

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        which = {"name": name, "version": version or ""}
        told = self._call("ModelMetadata", messages.ModelMetadataRequest(**which))
        config = self._call("ModelConfig", messages.ModelConfigRequest(**which)).config
        return model_info(
            name,
            [(t.name, t.datatype, list(t.shape)) for t in told.inputs],
            [(t.name, t.datatype, list(t.shape)) for t in told.outputs],
            config.max_batch_size,
            {key: value.string_value for key, value in config.parameters.items()},
        )

    # inference

    def infer(self, model: str, question: Question, version: str | None = None) -> Answer:
        told = self._call("ModelInfer", _encode(model, version, question))
        outputs = {}
        if len(told.raw_output_contents) != len(told.outputs):
            raise problems.unreadable("outputs without raw contents")
        for output, blob in zip(told.outputs, told.raw_output_contents, strict=True):
            outputs[output.name] = tensor_from_bytes(
                output.name, output.datatype, tuple(output.shape), blob
            )
        parameters = {k: v.string_param for k, v in told.parameters.items()}
        return Answer(outputs, told.model_name, told.model_version, where_from(parameters))

    def _call(self, method: str, request: Any) -> Any:
        response = type(request).__name__.removesuffix("Request") + "Response"
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(messages, response).FromString,
        )
        try:
            return call(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._problem(error) from None

    def _problem(self, error: Any) -> EdgeServeError:
        code, cause, url = error.code(), error.details() or "", self._url
        if code is grpc.StatusCode.UNAVAILABLE:
            if "refused" in cause:
                return problems.unreachable(url)
            if "onnect" in cause or "andshak" in cause or "address" in cause:
                return problems.broken(url, cause)
            return problems.busy(url, cause)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # The channel itself says so when the time is over on this side.
            if cause == "Deadline Exceeded":
                return problems.silent(url, self._timeout_s)
            return problems.late(url, cause)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return problems.wants_key(url, cause)
        if code is grpc.StatusCode.NOT_FOUND:
            return problems.unknown(url, cause)
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
            return problems.refused(url, cause)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return problems.busy(url, cause)
        return problems.failed(url, code.name, cause)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _tls(access: Access) -> Any:
    files = (access.ca, access.certificate_key or access.certificate, access.certificate)
    try:
        return grpc.ssl_channel_credentials(*(f and f.read_bytes() for f in files))
    except OSError as error:
        raise UsageError("the TLS files cannot be used", cause=str(error)) from None


def _encode(model: str, version: str | None, question: Question) -> ModelInferRequest:
    request = messages.ModelInferRequest(model_name=model, model_version=version or "")
    if question.id is not None:
        request.id = question.id
    for key, value in question.parameters.items():
        _set(request.parameters[key], value)
    for name, array in question.inputs.items():
        request.inputs.add(name=name, datatype=dtype_name(array.dtype), shape=array.shape)
        request.raw_input_contents.append(bytes(binary.to_bytes(array)))
    for name in question.outputs:
        request.outputs.add(name=name)
    return request


def _set(parameter: Any, value: Parameter) -> None:
    setattr(parameter, _KINDS[type(value)], value)


def _statistics(told: ModelStatistics) -> Statistics:
    def mean_ms(duration: Any) -> float:
        return float(duration.ns) / duration.count / 1e6 if duration.count else 0.0

    times = told.inference_stats
    return Statistics(
        succeeded=times.success.count,
        failed=times.fail.count,
        batches=told.execution_count,
        queue_ms=mean_ms(times.queue),
        compute_ms=mean_ms(times.compute_infer),
        total_ms=mean_ms(times.success),
    )
