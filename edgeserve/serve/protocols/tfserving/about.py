"""What TF Serving and KServe v1 say of a model: its versions and their states, its signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.tfserving.codec import SIGNATURE
from edgeserve.serve.status.status import ModelStatus
from edgeserve.tensors import TensorSpec

STATES: Final = {
    "READY": "AVAILABLE",
    "LOADING": "LOADING",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
# Names and numbers of tensorflow/core/framework/types.proto.
DT: Final = {
    "FP32": ("DT_FLOAT", 1), "FP64": ("DT_DOUBLE", 2), "INT32": ("DT_INT32", 3), "UINT8": ("DT_UINT8", 4),
    "INT16": ("DT_INT16", 5), "INT8": ("DT_INT8", 6), "BYTES": ("DT_STRING", 7), "INT64": ("DT_INT64", 9),
    "BOOL": ("DT_BOOL", 10), "BF16": ("DT_BFLOAT16", 14), "UINT16": ("DT_UINT16", 17), "FP16": ("DT_HALF", 19),
    "UINT32": ("DT_UINT32", 22), "UINT64": ("DT_UINT64", 23),
}  # fmt: skip


class StatusCode(msgspec.Struct, frozen=True):
    """OK, or why a version is not available."""

    error_code: str = "OK"
    error_message: str = ""


class VersionStatus(msgspec.Struct, frozen=True):
    """One version and its state."""

    version: str
    state: str
    status: StatusCode


class ModelVersions(msgspec.Struct, frozen=True):
    """TF Serving's status of a model, and KServe's fields."""

    model_version_status: list[VersionStatus]
    name: str
    ready: bool


def versions_of(name: str, found: Sequence[ModelStatus]) -> ModelVersions:
    """The newest first."""
    ordered = sorted(found, key=lambda status: -int(status.version))
    return ModelVersions(
        [VersionStatus(s.version, STATES[s.state], code_of(s)) for s in ordered],
        name,
        any(s.state == "READY" for s in ordered),
    )


def code_of(status: ModelStatus) -> StatusCode:
    """OK for a version that serves, or is not there because nobody wants it."""
    failure = failure_of(status)
    return StatusCode() if failure is None else StatusCode("UNAVAILABLE", failure)


def failure_of(status: ModelStatus) -> str | None:
    """Why a version that should serve does not."""
    lost = status.device is not None  # it was opened
    if status.state != "UNAVAILABLE" or not (status.load_failed or lost):
        return None
    return status.reason


def metadata(model: ServedModel) -> dict[str, Any]:
    """The model's signature, with sizes as text, as protobuf's JSON has them."""
    signature = {
        "inputs": {spec.name: _tensor(spec) for spec in model.interface.inputs},
        "outputs": {spec.name: _tensor(spec) for spec in model.interface.outputs},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.wire_shape]
    return {
        "dtype": DT[spec.dtype][0],
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": f"{spec.name}:0",
    }
