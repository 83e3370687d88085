"""A served model's configuration in the words of Triton's model_config.proto, as its tools read it.

Source: triton-inference-server/common, protobuf/model_config.proto. The structs encode to the JSON of
`/v2/models/NAME/config`; the gRPC service copies them field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

import msgspec

from edgeserve.bundle import Bundle, Labels, Preprocess
from edgeserve.serve.engine.settings import EngineSettings, LevelSettings
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.settings.versions import VersionPolicy
from edgeserve.tensors import Interface, TensorSpec

Layout = Literal["FORMAT_NONE", "FORMAT_NCHW", "FORMAT_NHWC"]
_LAYOUTS: Final[dict[str, Layout]] = {"NCHW": "FORMAT_NCHW", "NHWC": "FORMAT_NHWC"}


class InputConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input; `dims` without the batch dimension where requests can share a batch. `format` is the layout
    of images."""

    name: str
    data_type: str
    dims: list[int]
    format: Layout = "FORMAT_NONE"


class OutputConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output. `label_filename` is for those whose classes have names."""

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
_ACTIONS: Final[dict[str, TimeoutAction]] = {"reject": "REJECT", "delay": "DELAY"}


class QueuePolicy(msgspec.Struct, frozen=True):
    """How requests wait. Times in microseconds, 0: none; `max_queue_size` counts those that run, too."""

    timeout_action: TimeoutAction
    default_timeout_microseconds: int
    allow_timeout_override: bool
    max_queue_size: int

    @classmethod
    def of(cls, rules: EngineSettings | LevelSettings, queue: int) -> Self:
        limit = round(rules.timeout_s * 1e6)
        return cls(_ACTIONS[rules.timeout_action], limit, rules.own_timeouts, queue)


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
        several = settings.priority_levels > 1
        return cls(
            QueuePolicy.of(settings, settings.queue),
            settings.preferred_batches,
            round(settings.batch_delay_s * 1e6),
            settings.priority_levels if several else 0,
            settings.default_priority if several else 0,
            {
                priority: QueuePolicy.of(own, settings.queue if own.queue is None else own.queue)
                for priority, own in settings.levels.items()
            },
        )


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
    max_batch_size: Annotated[int, msgspec.Meta(ge=0)]
    input: tuple[InputConfig, ...]
    output: tuple[OutputConfig, ...]
    instance_group: tuple[InstanceGroup, ...]
    model_transaction_policy: TransactionPolicy
    dynamic_batching: DynamicBatching | None = None
    parameters: dict[str, ModelParameter] = {}


def config_of(model: ServedModel) -> ModelConfig:
    """A model's configuration, as it is served now."""
    candidate, engine, bundle = model.candidate, model.engine, model.bundle
    settings = model.settings if engine is None else engine.settings
    kind = "KIND_CPU" if candidate.device == "cpu" else "KIND_GPU"
    group = InstanceGroup(f"{model.name}_0", kind, max(1, settings.instances))
    batching = engine is not None and engine.max_batch > 1
    parameters = _task_parameters(bundle, model.class_names)
    if engine is not None:
        parameters["edgeserve_batching"] = ModelParameter(engine.batching)
        rows = engine.chain.batching.max_batch if model.interface.max_batch else 1
        parameters["edgeserve_independent_rows"] = ModelParameter(str(rows))
    return ModelConfig(
        name=model.name,
        platform=platform_of(model),
        backend=candidate.runtime,
        version_policy=model.policy,
        max_batch_size=model.interface.max_batch,
        input=_input_configs(model.interface, bundle.manifest.task.preprocess),
        output=_output_configs(model.interface, model.labels),
        instance_group=(group,),
        model_transaction_policy=TransactionPolicy(),
        dynamic_batching=DynamicBatching.of(settings) if batching else None,
        parameters=parameters,
    )


def platform_of(model: ServedModel) -> str:
    """The name by which Triton's clients know this kind of model: its runtime and format."""
    candidate = model.candidate
    file_format = model.bundle.manifest.variant(candidate.variant).format
    return f"{candidate.runtime}_{file_format.removeprefix(candidate.runtime + '-')}"


def _input_configs(interface: Interface, preprocess: Preprocess | None) -> tuple[InputConfig, ...]:
    """An image bundle's one input has the layout of its preprocessing."""
    layout: Layout = "FORMAT_NONE"
    if preprocess is not None and len(interface.inputs) == 1:
        layout = _LAYOUTS[preprocess.layout]
    return tuple(InputConfig(*_tensor(s, interface), layout) for s in interface.inputs)


def _output_configs(interface: Interface, labels: Mapping[str, Labels]) -> tuple[OutputConfig, ...]:
    files = {output: own.file for output, own in labels.items()}
    return tuple(
        OutputConfig(*_tensor(s, interface), files.get(s.name, "")) for s in interface.outputs
    )


def _tensor(spec: TensorSpec, interface: Interface) -> tuple[str, str, list[int]]:
    """Name, type and dimensions."""
    kind = "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}"
    return spec.name, kind, spec.wire_shape[1:] if interface.max_batch else spec.wire_shape


def _task_parameters(
    bundle: Bundle, labels: Mapping[str, tuple[str, ...]]
) -> dict[str, ModelParameter]:
    """What a client needs to make inputs and to read outputs: `edgeserve_labels`, the class names by output, or
    `edgeserve_class_names`, if they belong to no output; `edgeserve_preprocess`, how an image becomes the input;
    `edgeserve_postprocess`, how outputs become an answer; all as JSON."""
    task = bundle.manifest.task
    known = {
        "labels": labels or None,
        "class_names": None if labels else bundle.labels(),
        "preprocess": task.preprocess,
        "postprocess": task.postprocess,
    }
    return {
        f"edgeserve_{name}": ModelParameter(msgspec.json.encode(value).decode())
        for name, value in known.items()
        if value is not None
    }
