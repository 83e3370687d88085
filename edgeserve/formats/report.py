"""The report on a model file, the same for every format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import Scale
from edgeserve.bundle.files import file_sha256
from edgeserve.tensors import TensorSpec

_LARGEST: Final = 10


class Weight(msgspec.Struct, frozen=True):
    """One constant tensor of a model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size_bytes: int


class Share(msgspec.Struct, frozen=True):
    """All constants of one element type together."""

    dtype: str
    tensors: int
    elements: int
    size_bytes: int


class ModelFile(msgspec.Struct, frozen=True):
    """A file the model consists of."""

    name: str
    size_bytes: int
    sha256: str


class ModelReport(msgspec.Struct, frozen=True):
    """What a model file holds.

    Sizes add up: `size_bytes` = the weights + `graph_bytes` (structure, names, and weights' headers).
    `operators` counts the graph's nodes with those of its subgraphs, most frequent first. `state` are the
    variables that the model keeps from one call to the next; `passed` pairs an input with the output that
    is the input of the next call: a state that the caller keeps. `layers` counts layers by the precision
    of their weights. `scales` are those of quantized outputs.
    """

    path: str
    format: str
    version: str
    producer: str | None
    size_bytes: int
    graph_bytes: int
    files: tuple[ModelFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    weights: tuple[Share, ...]
    largest: tuple[Weight, ...]
    state: tuple[TensorSpec, ...] = ()
    passed: tuple[tuple[str, str], ...] = ()
    layers: dict[str, int] = {}
    scales: dict[str, Scale] = {}


def model_report(
    paths: list[Path],
    format_name: str,
    version: str,
    producer: str | None,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    operators: Iterable[str],
    weights: list[Weight],
    state: Iterable[TensorSpec] = (),
    passed: Iterable[tuple[str, str]] = (),
    layers: Mapping[str, int] | None = None,
    scales: Mapping[str, Scale] | None = None,
) -> ModelReport:
    """Add up what a format's reader found. The first of `paths` is the model, others its data."""
    root = paths[0].parent
    files = tuple(_model_file(path, root) for path in paths)
    size = sum(f.size_bytes for f in files)
    return ModelReport(
        path=str(paths[0]),
        format=format_name,
        version=version,
        producer=producer,
        size_bytes=size,
        graph_bytes=max(0, size - sum(w.size_bytes for w in weights)),
        files=files,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        operators=_histogram(operators),
        parameters=sum(w.elements for w in weights),
        weights=_shares(weights),
        largest=tuple(sorted(weights, key=lambda w: -w.size_bytes)[:_LARGEST]),
        state=tuple(state),
        passed=tuple(passed),
        layers=dict(layers or {}),
        scales=dict(scales or {}),
    )


def state_text(state: Iterable[TensorSpec]) -> str | None:
    """The remark on a model with variables; None for one without."""
    kept = ", ".join(f"'{s.name}' {s.describe()}" for s in state)
    return f"the model keeps a state between calls: {kept}" if kept else None


def passed_text(passed: Iterable[tuple[str, str]]) -> str | None:
    """The remark on a state that goes through inputs and outputs; None where none does."""
    pairs = ", ".join(
        f"output '{given}' is input '{taken}' of the next call" for taken, given in passed
    )
    return f"the client keeps the model's state: {pairs}" if pairs else None


def _model_file(path: Path, root: Path) -> ModelFile:
    """A file's record; it is named relative to the model's folder."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return ModelFile(name, path.stat().st_size, file_sha256(path))


def _histogram(operators: Iterable[str]) -> dict[str, int]:
    """Operators by count, most frequent first, then by name."""
    counts = Counter(operators)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _shares(weights: list[Weight]) -> tuple[Share, ...]:
    """Weights summed by element type, largest first."""
    by_type: dict[str, list[Weight]] = {}
    for weight in weights:
        by_type.setdefault(weight.dtype, []).append(weight)
    sums = [
        Share(dtype, len(group), sum(w.elements for w in group), sum(w.size_bytes for w in group))
        for dtype, group in by_type.items()
    ]
    return tuple(sorted(sums, key=lambda share: -share.size_bytes))
