"""The JSON messages of the Open Inference Protocol v2 and of Triton's extensions, as /openapi.json describes them.

Infer requests are in `document`; `answers` writes what OutputMessage and InferredMessage describe.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edgeserve.postprocess import Box, ClassMap, ScoredClass
from edgeserve.serve.metrics.statistics import ModelStatistics
from edgeserve.serve.models.entries import State
from edgeserve.serve.protocols.v2.document import Datatype, Parameters
from edgeserve.serve.status.status import ModelReadiness, WorkerStatus

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
ModelVersion = Annotated[str, Meta(pattern="^[0-9]{1,18}$")]
RegionName = Annotated[str, Meta(min_length=1, max_length=200)]


class LiveMessage(msgspec.Struct, frozen=True):
    """The process runs."""

    live: bool


class ReadyMessage(msgspec.Struct, frozen=True):
    """Whether the server is ready; for callers who may infer, by model and by worker process."""

    ready: bool
    live: bool
    models: dict[str, ModelReadiness] | UnsetType = UNSET
    workers: tuple[WorkerStatus, ...] | UnsetType = UNSET


class ModelReadyMessage(msgspec.Struct, frozen=True):
    """Whether a model is ready."""

    name: str
    ready: bool


class ServerMessage(msgspec.Struct, frozen=True):
    """What serves. `extensions` are those of Triton's that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


class ListedModel(msgspec.Struct, frozen=True):
    """A model, its loaded versions, and what serves the newest one."""

    name: str
    versions: list[str]
    device: str
    runtime: str
    variant: str


class ModelsMessage(msgspec.Struct, frozen=True):
    """All models that are loaded."""

    models: list[ListedModel]


class TensorMessage(msgspec.Struct, frozen=True):
    """An input or output of a model. In `shape`, -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class MetadataMessage(msgspec.Struct, frozen=True):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMessage]
    outputs: list[TensorMessage]


class StatisticsMessage(msgspec.Struct, frozen=True):
    """Counts and times by model and version."""

    model_stats: list[ModelStatistics]


class IndexRequest(msgspec.Struct, frozen=True):
    """`ready`: only versions that are ready."""

    ready: bool = False


class IndexEntry(msgspec.Struct, frozen=True):
    """One version of one model. `reason` says why it is not READY, or not in memory."""

    name: str
    version: str
    state: State
    reason: str = ""


class LoadRequest(msgspec.Struct, frozen=True):
    """Triton's parameters of a load are not taken: models come from the server's disk alone."""

    parameters: Annotated[dict[str, Any], Meta(max_length=0)] = {}


class UnloadParameters(msgspec.Struct, frozen=True):
    """`unload_dependents` changes nothing: no model depends on another."""

    unload_dependents: bool = False


class UnloadRequest(msgspec.Struct, frozen=True):
    """As Triton's clients send it."""

    parameters: UnloadParameters = UnloadParameters()


class RegionRequest(msgspec.Struct, frozen=True):
    """`byte_size` bytes from `offset` of the POSIX shared memory object `key`."""

    key: str
    byte_size: Annotated[int, Meta(ge=1)]
    offset: Annotated[int, Meta(ge=0)] = 0


class OutputMessage(msgspec.Struct, frozen=True):
    """One output tensor."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] = []


class InferredMessage(msgspec.Struct, frozen=True):
    """The outputs, and what computed them."""

    model_name: str
    model_version: str
    outputs: list[OutputMessage]
    id: str = ""
    parameters: Parameters = {}


class PredictedMessage(msgspec.Struct, frozen=True):
    """What is on one image, or in one row: one of classes, boxes, mask, embedding and outputs. For several, a list of
    such objects as `predictions`. `parameters` say what computed it."""

    model_name: str
    model_version: str
    parameters: Parameters
    classes: list[ScoredClass] | UnsetType = UNSET
    boxes: list[Box] | UnsetType = UNSET
    mask: ClassMap | UnsetType = UNSET
    embedding: list[float] | UnsetType = UNSET
    outputs: dict[str, Any] | UnsetType = UNSET
    predictions: list[dict[str, Any]] | UnsetType = UNSET
