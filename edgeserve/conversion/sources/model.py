"""The model that is converted, whatever format it came in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeserve.bundle import OutputKind, Precision, Scale, Source
from edgeserve.formats.layers import layers_text
from edgeserve.quantize import ModelFacts
from edgeserve.tensors import Interface, TensorSpec


class SourceModel(msgspec.Struct, frozen=True):
    """A readable model: what is converted from. `format` is that of its data, which for sources of
    most frameworks is ONNX by now; `source` describes the file that the user gave.

    `proto` is an onnx.ModelProto with its external data loaded, None for other formats; once the whole model is in
    `file`, it holds small constants only. `labels` is a
    list of class names that the source brought along. `state` are the variables that the model keeps between
    calls; `passed` pairs of an input and an output by which its callers keep one. `kinds` is what its
    outputs hold, by name. `layers` counts layers by the precision of their weights. `scales` are those of quantized outputs.
    """

    path: Path
    format: str
    proto: Any
    source: Source
    interface: Interface
    facts: ModelFacts
    precision: Precision = "fp32"
    labels: Path | None = None
    state: tuple[TensorSpec, ...] = ()
    passed: tuple[tuple[str, str], ...] = ()
    kinds: Mapping[str, OutputKind] = {}
    layers: Mapping[str, int] = {}
    file: Path | None = None
    scales: Mapping[str, Scale] = {}

    @property
    def is_quantized(self) -> bool:
        return self.precision in ("int8", "int4")

    def described_precision(self) -> str:
        """`is already int8 (int8: 3 of 3 layers)`, of a source that is not FP32."""
        layers = layers_text(self.layers)
        return f"is already {self.precision}" + (f" ({layers})" if layers else "")
