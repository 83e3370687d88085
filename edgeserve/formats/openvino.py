"""What an OpenVINO IR (`.xml` with its `.bin`) holds."""

from __future__ import annotations

import html
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgeserve import telemetry
from edgeserve.errors import DependencyMissing, SourceError
from edgeserve.formats.layers import Layers, openvino_layers
from edgeserve.formats.report import ModelReport, Weight, model_report
from edgeserve.tensors import TensorSpec

_NAMES: Final = {"f32": "FP32", "f16": "FP16", "f64": "FP64", "bf16": "BF16", "boolean": "BOOL",
                 "string": "BYTES", "i4": "INT4", "u4": "UINT4", "i8": "INT8", "u8": "UINT8",
                 "i16": "INT16", "u16": "UINT16", "i32": "INT32", "u32": "UINT32",
                 "i64": "INT64", "u64": "UINT64"}  # fmt: skip


class OpenVinoFile:
    """A parsed OpenVINO IR. `model` is an `openvino.Model`."""

    format: Final = "openvino-ir"

    def __init__(self, path: Path) -> None:
        """Raises SourceError, DependencyMissing."""
        telemetry.refuse()
        try:
            from openvino.frontend import FrontEndManager
        except ImportError:
            raise DependencyMissing(
                "openvino", needed_for="reading OpenVINO IR", extra="openvino"
            ) from None
        self.path = path
        try:
            # Core.read_model would also try every other format OpenVINO knows, and let each complain.
            reader = FrontEndManager().load_by_framework("ir")
            self.model: Any = reader.convert(reader.load(str(path)))
        except RuntimeError as error:
            raise SourceError(
                f"{path} is not a whole OpenVINO model",
                cause=_reason(error),
                hint="an IR is a .xml with its .bin beside it: copy or convert it again",
            ) from None

    @cached_property
    def layers(self) -> Layers:
        return openvino_layers(self.model)

    def report(self) -> ModelReport:
        weights, operators = [], []
        for op in self.model.get_ops():
            kind = op.get_type_name()
            operators.append(kind)
            if kind == "Constant":
                shape = tuple(int(d) for d in op.get_output_shape(0))
                dtype = _dtype(op.get_output_element_type(0))
                size = int(op.get_byte_size())
                weights.append(Weight(op.get_friendly_name(), dtype, shape, math.prod(shape), size))
        binary = self.path.with_suffix(".bin")
        return model_report(
            [self.path, binary] if binary.is_file() else [self.path],
            self.format,
            f"IR {_version(self.path)}",
            _producer(self.model),
            map(_spec, self.model.inputs),
            map(_spec, self.model.outputs),
            operators,
            weights,
            _state(self.path),
            layers=self.layers,
        )


def _state(path: Path) -> list[TensorSpec]:
    """The variables of ReadValue and Assign layers, of those in the bodies of loops, too.

    From the text: the engine lists a model's variables without those of inner bodies. Where a layer does
    not tell type and shape, its first port does.
    """
    found: dict[str, TensorSpec] = {}
    text = path.read_text("utf-8", errors="replace")
    for layer in _LAYER.finditer(text):
        attributes = dict(_ATTRIBUTE.findall(layer["data"]))
        name = html.unescape(attributes.get("variable_id", ""))
        kind, dims = attributes.get("variable_type"), attributes.get("variable_shape")
        if kind in (None, "dynamic") or dims in (None, "..."):
            port = _PORT.search(layer["ports"])
            kind = port["precision"].lower().replace("fp", "f") if port else "unknown"
            dims = ",".join(_DIM.findall(port["dims"])) if port else ""
        assert kind is not None
        shape = tuple(int(d) if d.strip().isdigit() else "?" for d in (dims or "").split(",") if d)
        spec = TensorSpec(name, _NAMES.get(kind, kind), shape)
        if name not in found or len(shape) > len(found[name].shape):
            found[name] = spec
    return list(found.values())


_LAYER: Final = re.compile(
    r'<layer\b[^>]*\btype="(?:ReadValue|Assign)"[^>]*>\s*<data\b(?P<data>[^>]*)/?>(?P<ports>.*?)</layer>',
    re.DOTALL,
)
_ATTRIBUTE: Final = re.compile(r'(\w+)="([^"]*)"')
_PORT: Final = re.compile(
    r'<port\b[^>]*precision="(?P<precision>\w+)"[^>]*>(?P<dims>.*?)</port>', re.DOTALL
)
_DIM: Final = re.compile(r"<dim>(-?\d+)</dim>")


def _dtype(element_type: Any) -> str:
    name = str(element_type.get_type_name())
    return _NAMES.get(name, name)


def _spec(port: Any) -> TensorSpec:
    name = port.get_any_name() if port.get_names() else port.get_node().get_friendly_name()
    shape = port.get_partial_shape()
    dims = (
        tuple(d.get_length() if d.is_static else "?" for d in shape) if shape.rank.is_static else ()
    )
    return TensorSpec(name, _dtype(port.get_element_type()), dims)


def _version(path: Path) -> str:
    with path.open("rb") as file:
        found = re.search(rb'<net\b[^>]*\bversion="(\w+)"', file.read(4096))
    return found[1].decode() if found else "unknown"


def _producer(model: Any) -> str | None:
    if not model.has_rt_info("Runtime_version"):
        return None
    return f"openvino {model.get_rt_info('Runtime_version').astype(str)}"


def _reason(error: RuntimeError) -> str:
    """The engine's own words, without the places in its source where they were raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return said[-1] if said else str(error)
