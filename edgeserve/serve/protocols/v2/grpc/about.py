"""The methods that tell about the server and its models, and those that change it. On the event loop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
from google.protobuf import json_format

from edgeserve.errors import InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.access.keys import Forbidden
from edgeserve.serve.control import check_model_control
from edgeserve.serve.grpc.errors import NotSupported
from edgeserve.serve.protocols.grpc_inference import ServedCalls
from edgeserve.serve.protocols.v2.config import config_of, platform_of
from edgeserve.serve.protocols.v2.extensions import (
    EXTENSIONS,
    LOG_SETTINGS,
    NO_CUDA,
    READ_ONLY,
    TRACE_SETTINGS,
    check_unload,
)
from edgeserve.serve.protocols.v2.grpc import codec
from edgeserve.serve.shm import UnknownRegion
from edgeserve.tensors import TensorSpec
from edgeserve.version import __version__
from edgeserve.wire import messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

    from edgeserve.wire import messages as m


class About:
    """One method for each RPC but the two that infer."""

    def __init__(self, served: ServedCalls) -> None:
        self._repository = served.repository
        self._shm = served.shm
        self._control = served.control
        self._model_control = served.model_control
        self._changed = served.changed

    # health and metadata

    async def ServerLive(self, request: m.ServerLiveRequest) -> m.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: m.ServerReadyRequest) -> m.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=await self._control.ready())

    async def ModelReady(self, request: m.ModelReadyRequest) -> m.ModelReadyResponse:
        version = codec.version_of(request.version)
        try:
            model = self._repository.find(request.name, version)
        except (ModelNotFound, ModelUnavailable):
            return messages.ModelReadyResponse(ready=False)
        ready = await self._control.answers((model.name, model.version))
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: m.ServerMetadataRequest) -> m.ServerMetadataResponse:
        return messages.ServerMetadataResponse(
            name="edgeserve", version=__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: m.ModelMetadataRequest) -> m.ModelMetadataResponse:
        model = self._repository.find(request.name, codec.version_of(request.version))
        return messages.ModelMetadataResponse(
            name=model.name,
            versions=self._repository.versions(model.name),
            platform=platform_of(model),
            inputs=[_tensor(s) for s in model.interface.inputs],
            outputs=[_tensor(s) for s in model.interface.outputs],
        )

    async def ModelConfig(self, request: m.ModelConfigRequest) -> m.ModelConfigResponse:
        model = self._repository.find(request.name, codec.version_of(request.version))
        response = messages.ModelConfigResponse()
        _copy(config_of(model), response.config)
        return response

    async def ModelStatistics(self, request: m.ModelStatisticsRequest) -> m.ModelStatisticsResponse:
        model = None
        if request.name:
            model = self._repository.find(request.name, codec.version_of(request.version))
        response = messages.ModelStatisticsResponse()
        for one in (await self._control.counts()).statistics():
            if model is None or (one.name, one.version) == (model.name, model.version):
                _copy(one, response.model_stats.add())
        return response

    # the repository

    async def RepositoryIndex(self, request: m.RepositoryIndexRequest) -> m.RepositoryIndexResponse:
        _only_repository(request.repository_name)
        response = messages.RepositoryIndexResponse()
        for model in (await self._control.status()).models:
            if model.state == "READY" or not request.ready:
                response.models.add(
                    name=model.name, version=model.version, state=model.state, reason=model.reason
                )
        return response

    async def RepositoryModelLoad(
        self, request: m.RepositoryModelLoadRequest
    ) -> m.RepositoryModelLoadResponse:
        self._check_control(request.repository_name)
        await self._control.load(request.model_name, _repository_parameters(request.parameters))
        self._changed()
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: m.RepositoryModelUnloadRequest
    ) -> m.RepositoryModelUnloadResponse:
        self._check_control(request.repository_name)
        check_unload(request.parameters)
        with contextlib.suppress(ModelNotFound):  # no error, as with Triton
            await self._control.unload(request.model_name)
        self._changed()
        return messages.RepositoryModelUnloadResponse()

    def _check_control(self, repository_name: str) -> None:
        _only_repository(repository_name)
        check_model_control(self._model_control)

    # shared memory

    async def SystemSharedMemoryStatus(
        self, request: m.SystemSharedMemoryStatusRequest
    ) -> m.SystemSharedMemoryStatusResponse:
        response = messages.SystemSharedMemoryStatusResponse()
        for region in self._shm.status(request.name or None):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    async def SystemSharedMemoryRegister(
        self, request: m.SystemSharedMemoryRegisterRequest
    ) -> m.SystemSharedMemoryRegisterResponse:
        await self._control.register(request.name, request.key, request.offset, request.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: m.SystemSharedMemoryUnregisterRequest
    ) -> m.SystemSharedMemoryUnregisterResponse:
        await self._control.unregister(request.name or None)
        return messages.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: m.CudaSharedMemoryStatusRequest
    ) -> m.CudaSharedMemoryStatusResponse:
        if request.name:
            raise UnknownRegion(f"no CUDA memory region is registered as {request.name!r:.60}")
        return messages.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: m.CudaSharedMemoryRegisterRequest
    ) -> m.CudaSharedMemoryRegisterResponse:
        raise NotSupported(NO_CUDA)

    async def CudaSharedMemoryUnregister(
        self, request: m.CudaSharedMemoryUnregisterRequest
    ) -> m.CudaSharedMemoryUnregisterResponse:
        return messages.CudaSharedMemoryUnregisterResponse()

    # settings, which clients may read

    async def TraceSetting(self, request: m.TraceSettingRequest) -> m.TraceSettingResponse:
        if request.settings:
            raise Forbidden(READ_ONLY)
        if request.model_name:
            self._repository.find(request.model_name)
        response = messages.TraceSettingResponse()
        for name, values in TRACE_SETTINGS.items():
            response.settings[name].value.extend(values if isinstance(values, list) else [values])
        return response

    async def LogSettings(self, request: m.LogSettingsRequest) -> m.LogSettingsResponse:
        if request.settings:
            raise Forbidden(READ_ONLY)
        response = messages.LogSettingsResponse()
        for name, value in LOG_SETTINGS.items():
            setting = response.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response


def _tensor(spec: TensorSpec) -> m.ModelMetadataResponse.TensorMetadata:
    return messages.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.wire_shape
    )


def _copy(source: msgspec.Struct, destination: Message) -> None:
    """Field by field, by name: these structs are named after the messages."""
    fields = msgspec.to_builtins(source, str_keys=True)
    json_format.ParseDict(fields, destination, ignore_unknown_fields=True)


def _only_repository(name: str) -> None:
    if name:
        raise InvalidInput(f"repository_name: expected none, got {name!r:.60}")


def _repository_parameters(
    given: Mapping[str, m.ModelRepositoryParameter],
) -> dict[str, str | int | bool | bytes]:
    values: dict[str, str | int | bool | bytes] = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"parameter '{name:.60}' has no value")
        values[name] = getattr(parameter, choice)
    return values
