"""What a `.tflite` file holds, read from its FlatBuffer."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgeserve.bundle import Scale
from edgeserve.errors import DependencyMissing, SourceError
from edgeserve.formats.layers import Layers, tflite_layers
from edgeserve.formats.report import ModelReport, Weight, model_report
from edgeserve.tensors import TensorSpec

_NAMES: Final = {"FLOAT16": "FP16", "FLOAT32": "FP32", "FLOAT64": "FP64", "BFLOAT16": "BF16",
                 "STRING": "BYTES"}  # fmt: skip


_DETECTIONS: Final = "TFLite_Detection_PostProcess"


class TfliteFile:
    """A parsed `.tflite` file. `model` is its unpacked FlatBuffer (`ModelT`)."""

    format: Final = "tflite"

    def __init__(self, path: Path) -> None:
        """Raises SourceError (missing, not whole), DependencyMissing."""
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError:
            raise DependencyMissing(
                "ai-edge-litert", needed_for="reading .tflite", extra="litert"
            ) from None
        self.path = path
        self._schema = schema
        self._types = _by_value(schema.TensorType)
        content = path.read_bytes()
        self._size = len(content)
        with self._whole():
            # Unpacks every table, so whatever lies past the end is found. LiteRT's own interpreter is no
            # judge of a file: it crashes the process on some damaged ones that its verifier lets pass.
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))

    @cached_property
    def layers(self) -> Layers:
        return tflite_layers(self.model, self._schema)

    def report(self) -> ModelReport:
        """Raises SourceError for a file that is damaged."""
        model, types = self.model, self._types
        with self._whole():
            operators = _by_value(self._schema.BuiltinOperator)
            codes = [_operator(code, operators) for code in model.operatorCodes]
            first = model.subgraphs[0]
            outputs = _shaped(first, codes, [_spec(first.tensors[i], types) for i in first.outputs])
            return model_report(
                [self.path],
                self.format,
                f"schema {model.version}",
                _text(model.description) or None,
                [_spec(first.tensors[i], types) for i in first.inputs],
                outputs,
                [
                    codes[op.opcodeIndex]
                    for graph in model.subgraphs
                    for op in graph.operators or ()
                ],
                _weights(model, types, self._size),
                _state(model, codes, types),
                layers=self.layers,
                scales=_scales((first.tensors[i] for i in first.outputs), types),
            )

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What reading a truncated file fails with, as SourceError."""
        try:
            yield
        except (struct.error, IndexError, TypeError, AttributeError, ValueError) as error:
            raise SourceError(
                f"{self.path} is not a whole TFLite model",
                cause=f"{error} ({self._size} bytes)",
                hint="it may be truncated: copy or convert it again",
            ) from None


def _state(model: Any, codes: list[str], types: dict[int, str]) -> list[TensorSpec]:
    """Variable tensors, and resource variables with the type and shape of what is read from or written to
    them. Several handles may be of one variable."""
    found = []
    resources: dict[str, TensorSpec] = {}
    for graph in model.subgraphs:
        found += [_spec(t, types) for t in graph.tensors if t.isVariable]
        handles: dict[int, str] = {}
        for op in graph.operators or ():
            kind = codes[op.opcodeIndex]
            if kind == "VAR_HANDLE":
                shared = _text(getattr(op.builtinOptions, "sharedName", None))
                name = shared or _text(graph.tensors[op.outputs[0]].name)
                handles[int(op.outputs[0])] = name
                resources.setdefault(name, TensorSpec(name, "RESOURCE", ()))
            elif kind in ("READ_VARIABLE", "ASSIGN_VARIABLE") and int(op.inputs[0]) in handles:
                value = graph.tensors[op.outputs[0] if kind == "READ_VARIABLE" else op.inputs[1]]
                spec, name = _spec(value, types), handles[int(op.inputs[0])]
                resources[name] = TensorSpec(name, spec.dtype, spec.shape)
    return [*found, *resources.values()]


def _weights(model: Any, types: dict[int, str], file_size: int) -> list[Weight]:
    """Tensors with data; several may share a buffer, which is counted once."""
    weights, seen = [], set()
    for tensor in (t for graph in model.subgraphs for t in graph.tensors):
        buffer = model.buffers[tensor.buffer]
        # Files over 2 GB keep their data behind the FlatBuffer, at an offset.
        size = buffer.size if buffer.data is None else len(buffer.data)
        if buffer.offset + buffer.size > file_size:
            raise ValueError(f"the data of '{_text(tensor.name)}' lie past the end")
        if size and tensor.buffer not in seen:
            seen.add(tensor.buffer)
            shape = _ints(tensor.shape)
            name, dtype = _text(tensor.name), _dtype(tensor, types)
            weights.append(Weight(name, dtype, shape, math.prod(shape), size))
    return weights


def _spec(tensor: Any, types: dict[int, str]) -> TensorSpec:
    shape, signature = _ints(tensor.shape), _ints(tensor.shapeSignature)
    if len(signature) == len(shape):
        shape = signature
    dims = tuple(d if d >= 0 else "?" for d in shape)
    return TensorSpec(_text(tensor.name), _dtype(tensor, types), dims)


def _shaped(graph: Any, codes: list[str], outputs: list[TensorSpec]) -> list[TensorSpec]:
    """The outputs of a graph, those of its detection head with their shapes: most files leave them out, and the
    interpreter sets them."""
    shapes: dict[int, tuple[int | str, ...]] = {}
    for op in graph.operators or ():
        if codes[op.opcodeIndex] == _DETECTIONS:
            heads = ((1, "?", 4), (1, "?"), (1, "?"), (1,))
            shapes |= {int(i): s for i, s in zip(op.outputs, heads, strict=False)}
    return [
        TensorSpec(spec.name, spec.dtype, shapes.get(int(i), ())) if not spec.shape else spec
        for i, spec in zip(graph.outputs, outputs, strict=True)
    ]


def _scales(tensors: Iterable[Any], types: dict[int, str]) -> dict[str, Scale]:
    """Of tensors of whole numbers with one scale for all."""
    found = {}
    for tensor in tensors:
        spec, how = _spec(tensor, types), tensor.quantization
        scales = [] if how is None or how.scale is None else [float(v) for v in how.scale]
        if (
            spec.dtype in ("INT8", "UINT8", "INT16", "UINT16")
            and len(scales) == 1
            and scales[0] > 0
        ):
            zeros = _ints(how.zeroPoint)
            found[spec.name] = Scale(scales[0], zeros[0] if zeros else 0)
    return found


def _operator(code: Any, names: dict[int, str]) -> str:
    if code.customCode:
        return _text(code.customCode)
    # Codes past 127 do not fit the older, one-byte field (schema.fbs, table OperatorCode).
    value = max(code.builtinCode, code.deprecatedBuiltinCode)
    return names.get(value, f"operator {value}")


def _dtype(tensor: Any, types: dict[int, str]) -> str:
    name = types.get(tensor.type, f"type {tensor.type}")
    return _NAMES.get(name, name)


def _ints(vector: Iterable[int] | None) -> tuple[int, ...]:
    return () if vector is None else tuple(int(v) for v in vector)


def _by_value(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", errors="replace")
