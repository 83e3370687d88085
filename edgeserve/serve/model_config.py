"""A served model's configuration in the words of Triton's model_config.proto, as its tools read it.

Source: triton-inference-server/common, protobuf/model_config.proto. The structs encode to the JSON of
`/v2/models/NAME/config`; the gRPC service copies them field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, Self

import msgspec

from edgeserve.bundle import Bundle, Labels
from edgeserve.serve.engine.settings import EngineSettings, LevelSettings, OnTimeout
from edgeserve.tensors import Interface, TensorSpec

NO_LABELS: Final[Mapping[str, Labels]] = MappingProxyType({})


class TensorConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output; `dims` without the batch dimension where requests can share a batch.
    `label_filename` is for outputs whose classes have names."""

    name: str
    data_type: str
    dims: list[int]
    label_filename: str = ""


class InstanceGroup(msgspec.Struct, frozen=True):
    """How many calls of the model run side by side, and on what."""

    name: str
    kind: str
    count: int


TimeoutAction = Literal["REJECT", "DELAY"]
_ACTIONS: Final[dict[OnTimeout, TimeoutAction]] = {"reject": "REJECT", "delay": "DELAY"}


class QueuePolicy(msgspec.Struct, frozen=True):
    """How requests wait. Times in microseconds, 0: none; `max_queue_size` counts those that run, too."""

    timeout_action: TimeoutAction
    default_timeout_microseconds: int
    allow_timeout_override: bool
    max_queue_size: int

    @classmethod
    def of(cls, rules: EngineSettings | LevelSettings, queue: int) -> Self:
        limit = round(rules.timeout_s * 1e6)
        return cls(_ACTIONS[rules.on_timeout], limit, rules.own_timeouts, queue)


class DynamicBatching(msgspec.Struct, frozen=True):
    """How requests are put together, and how they wait for it."""

    default_queue_policy: QueuePolicy
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    priority_queue_policy: dict[int, QueuePolicy] = {}

    @classmethod
    def of(cls, settings: EngineSettings) -> Self:
        several = settings.priorities > 1
        return cls(
            QueuePolicy.of(settings, settings.queue),
            settings.preferred,
            round(settings.delay_s * 1e6),
            settings.priorities if several else 0,
            settings.default_priority if several else 0,
            {
                priority: QueuePolicy.of(own, settings.queue if own.queue is None else own.queue)
                for priority, own in settings.levels.items()
            },
        )


class Latest(msgspec.Struct, frozen=True):
    """The newest versions serve."""

    num_versions: int = 1


class All(msgspec.Struct, frozen=True):
    """Every version serves."""


class Specific(msgspec.Struct, frozen=True):
    """The versions named serve."""

    versions: tuple[int, ...]


class VersionPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which versions of a model serve; one of the three is set."""

    latest: Latest | None = None
    all: All | None = None
    specific: Specific | None = None


class TransactionPolicy(msgspec.Struct, frozen=True):
    """One request has one response."""

    decoupled: bool = False


class ModelParameter(msgspec.Struct, frozen=True):
    """A value of `parameters`."""

    string_value: str


class ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `/v2/models/NAME/config` says."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: tuple[TensorConfig, ...]
    output: tuple[TensorConfig, ...]
    instance_group: tuple[InstanceGroup, ...]
    model_transaction_policy: TransactionPolicy
    dynamic_batching: DynamicBatching | None = None
    parameters: dict[str, ModelParameter] = {}


def tensor_configs(
    specs: tuple[TensorSpec, ...], interface: Interface, labels: Mapping[str, Labels] = NO_LABELS
) -> tuple[TensorConfig, ...]:
    return tuple(
        TensorConfig(
            spec.name,
            "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}",
            spec.wire_shape[1:] if interface.max_batch else spec.wire_shape,
            labels[spec.name].file if spec.name in labels else "",
        )
        for spec in specs
    )


def task_parameters(
    bundle: Bundle, labels: Mapping[str, tuple[str, ...]]
) -> dict[str, ModelParameter]:
    """What a client needs to make inputs and to read outputs: `edgeserve_labels`, the class names by output,
    and `edgeserve_preprocess`, how an image becomes the input; both as JSON."""
    known = {"labels": labels or None, "preprocess": bundle.manifest.task.preprocess}
    return {
        f"edgeserve_{name}": ModelParameter(msgspec.json.encode(value).decode())
        for name, value in known.items()
        if value is not None
    }
