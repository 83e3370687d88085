"""What a client says and hears, whatever the transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeserve.bundle import Postprocess, Preprocess
from edgeserve.client.problems import unreadable
from edgeserve.tensors import Interface, Tensors, TensorSpec

Parameter = str | int | float | bool


class Access(msgspec.Struct, frozen=True):
    """How to reach a server: time limit of one exchange, key, and files for TLS (PEM)."""

    timeout_s: float = 30.0
    api_key: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None

    def __repr__(self) -> str:
        return f"Access({self.timeout_s} s, {'with' if self.api_key else 'without'} key)"


class ServerInfo(msgspec.Struct, frozen=True):
    """What a server calls itself, and the protocol extensions it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class Where(msgspec.Struct, frozen=True):
    """What answered; all None for servers that do not say."""

    device: str | None = None
    runtime: str | None = None
    variant: str | None = None


class Statistics(msgspec.Struct, frozen=True):
    """What a model version has done since it was loaded; times are means of successful requests."""

    succeeded: int
    failed: int
    batches: int
    queue_ms: float
    compute_ms: float
    total_ms: float


class InsteadOf(msgspec.Struct, frozen=True):
    """The candidate that should serve a model and does not: why, in its own words, and in how many seconds it
    is tried again (None: when something changes)."""

    candidate: str
    reason: str = ""
    hint: str | None = None
    retry_s: float | None = None


class ModelStatus(msgspec.Struct, frozen=True):
    """One version of a model on a server. `reason` says why it is not ready, `batching` how requests share
    batches; empty where the server does not tell."""

    name: str
    version: str
    ready: bool
    reason: str = ""
    where: Where = Where()
    statistics: Statistics | None = None
    instead_of: InsteadOf | None = None
    batching: str = ""


class WorkerStatus(msgspec.Struct, frozen=True):
    """One of the processes of `edgeserve run --workers`, by its number. `reason` says why it is not ready."""

    worker: int
    ready: bool
    reason: str = ""


class ServerStatus(msgspec.Struct, frozen=True):
    """A server as `edgeserve status` shows it."""

    url: str
    server: str
    ready: bool
    models: tuple[ModelStatus, ...]
    workers: tuple[WorkerStatus, ...] = ()


class ModelInfo(msgspec.Struct, frozen=True):
    """What a server tells of one model. `max_batch` of the interface is 0 where it is not known; `labels` are
    the class names by output, `class_names` those of the bundle, whichever output they belong to.
    `independent_rows` is how many rows a request may have without one changing another's answer; None where the
    server does not tell."""

    name: str
    interface: Interface
    labels: dict[str, tuple[str, ...]] = {}
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    class_names: tuple[str, ...] = ()
    independent_rows: int | None = None


class Question(msgspec.Struct, frozen=True):
    """One inference request. No `outputs` asks for all of them."""

    inputs: Tensors
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Parameter] = {}
    id: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """One inference response."""

    outputs: Tensors
    model: str
    version: str
    where: Where


def where_from(parameters: dict[str, Any]) -> Where:
    """The parameters with which edgeserve says what answered."""
    names = ("device", "runtime", "variant")
    found = {n: parameters.get(f"edgeserve_{n}") for n in names}
    return Where(**{n: v for n, v in found.items() if isinstance(v, str)})


Wire = tuple[str, str, list[int]]


def model_info(
    name: str, inputs: list[Wire], outputs: list[Wire], max_batch: int, told: dict[str, str]
) -> ModelInfo:
    """From a model's metadata and configuration: tensors as (name, datatype, shape), and what the
    server tells in the configuration's parameters. Raises InferenceFailed."""
    try:
        return ModelInfo(
            name,
            Interface(
                tuple(_spec(wire, max_batch) for wire in inputs),
                tuple(_spec(wire, max_batch) for wire in outputs),
                max_batch,
            ),
            _told(told, "labels", dict[str, tuple[str, ...]], {}),
            _told(told, "preprocess", Preprocess, None),
            _told(told, "postprocess", Postprocess, None),
            _told(told, "class_names", tuple[str, ...], ()),
            _told(told, "independent_rows", int, None),
        )
    except msgspec.MsgspecError as error:
        raise unreadable(str(error)) from None


def _told(told: dict[str, str], name: str, kind: Any, absent: Any) -> Any:
    """JSON that edgeserve tells in a configuration's parameter."""
    text = told.get(f"edgeserve_{name}")
    return absent if text is None else msgspec.json.decode(text, type=kind)


def _spec(wire: Wire, max_batch: int) -> TensorSpec:
    """A spec from its wire form, where -1 is any size."""
    name, datatype, shape = wire
    dims: list[int | str] = [f"{name}_{i}" if d < 0 else d for i, d in enumerate(shape)]
    if max_batch and dims:
        dims[0] = "batch"
    return TensorSpec(name, datatype, tuple(dims))
