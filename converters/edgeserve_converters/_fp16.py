"""FP32 to FP16 in an ONNX graph, by the types of its values.

Each node computes in FP16 where its operator allows that for all of its floats, else in FP32 as before; a Cast
stands wherever a value crosses over. So the file is valid by construction, whatever Casts, shape arithmetic or
inner graphs the model has. Inputs and outputs stay FP32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeserve_converters._onnx import all_nodes, exceeds_protobuf

_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto
_STANDARD = ("", "ai.onnx")
# Operators that stay in FP32: engines lack them in FP16, or they compute indices, coordinates and long sums.
# Those with a `dtype` make FP32 by themselves.
_IN_FP32 = {
    "BatchNormalizationGrad", "Bernoulli", "CumSum", "DequantizeLinear", "DynamicQuantizeLinear",
    "EyeLike", "GridSample", "Max", "Min", "Multinomial", "NonMaxSuppression", "QuantizeLinear",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Resize", "RoiAlign",
    "TopK", "Upsample",
}  # fmt: skip
_MOST = 65504.0
# Stands for infinity in masks: as large as FP16 has it does as well.
_AS_GOOD_AS_INFINITE = 1e30
# Epsilons that FP16 would round to something else; of large tensors tiny values are noise.
_LEAST = 1e-6
_FEW = 64


def to_fp16(model: Any, kept: Iterable[str] = ()) -> None:
    """Change an `onnx.ModelProto`, its weights loaded, in place; what reads or writes `kept` stays in FP32."""
    _inline_constants(model.graph)
    _Graph(model, kept).rewrite()


class _Graph:
    def __init__(self, model: Any, kept: Iterable[str]) -> None:
        import onnx

        self._onnx = onnx
        self._graph = model.graph
        self._opsets = {o.domain: o.version for o in model.opset_import}
        self._types = self._known_types(model)
        self._weights = {t.name: t for t in self._graph.initializer}
        self._nodes: list[Any] = []
        self._there: set[str] = set()  # names that the new graph has so far
        self._wide: set[str] = set()  # weights that something reads in FP32
        self._stays = self._from_sizes() | set(kept)
        used = {n for node in all_nodes(self._graph) for n in (*node.input, *node.output)}
        self._used = used | set(self._weights) | {v.name for v in self._graph.input}
        self._short: dict[str, str] = {}

    def rewrite(self) -> None:
        graph = self._graph
        self._there |= {v.name for v in graph.input} | set(self._weights)
        for node in list(graph.node):
            if self._can(node):
                self._in_fp16(node)
            else:
                for name in (*node.input, *_captured(node)):
                    self._want_fp32(name)
                self._nodes.append(node)
                self._there.update(node.output)
        for value in graph.output:
            self._want_fp32(value.name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        self._drop_unread()

    def _in_fp16(self, node: Any) -> None:
        for index, name in enumerate(node.input):
            if self._is_float(name):
                node.input[index] = self._in_short(name)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == _FLOAT:
                    attribute.i = _FLOAT16
        for attribute in node.attribute:  # ConstantOfShape
            if attribute.name == "value" and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(self._narrowed(attribute.t, attribute.t.name))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = self._onnx.helper.make_tensor("value", _FLOAT16, [1], [0.0])
            node.attribute.append(self._onnx.helper.make_attribute("value", zero))
        for index, name in enumerate(node.output):
            if self._is_float(name):
                node.output[index] = self._name_short(name)
        self._nodes.append(node)
        self._there.update(node.output)

    # values

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == _FLOAT

    def _name_short(self, name: str) -> str:
        if name not in self._short:
            short = f"{name}_fp16"
            while short in self._used:
                short += "_"
            self._used.add(short)
            self._short[name] = short
        return self._short[name]

    def _in_short(self, name: str) -> str:
        """The value in FP16, made by a Cast or as a copy of a weight where it is not there yet."""
        short = self._name_short(name)
        if short not in self._there:
            if name in self._weights:
                self._graph.initializer.append(self._narrowed(self._weights[name], short))
            else:
                self._cast(name, short, _FLOAT16)
            self._there.add(short)
        return short

    def _want_fp32(self, name: str) -> None:
        if name in self._weights:
            self._wide.add(name)
        elif name not in self._there and self._short.get(name) in self._there:
            self._cast(self._short[name], name, _FLOAT)
            self._there.add(name)

    def _cast(self, source: str, result: str, kind: int) -> None:
        node = self._onnx.helper.make_node(
            "Cast", [source], [result], name=f"{result}_cast", to=kind
        )
        self._nodes.append(node)

    def _narrowed(self, tensor: Any, name: str) -> Any:
        import numpy as np

        array = self._onnx.numpy_helper.to_array(tensor)
        clipped = np.where(np.isfinite(array), np.clip(array, -_MOST, _MOST), array)
        return self._onnx.numpy_helper.from_array(clipped.astype(np.float16), name)

    def _drop_unread(self) -> None:
        """Weights whose copy in FP16 took their place, wherever older exporters list them."""
        read = {n for node in all_nodes(self._graph) for n in node.input}
        read |= self._wide | {v.name for v in self._graph.output}
        gone = {n for n in self._weights if n in self._short and n not in read}
        for values in (self._graph.initializer, self._graph.input):
            kept = [v for v in values if v.name not in gone]
            del values[:]
            values.extend(kept)

    # what can

    def _can(self, node: Any) -> bool:
        """Whether a node computes in FP16: it has floats, all of them may be that, and its constants keep
        their meaning."""
        names = [n for n in (*node.input, *node.output) if n]
        if not any(self._is_float(n) for n in names) or any(n not in self._types for n in names):
            return False
        if _has_graphs(node) or node.op_type in _IN_FP32 or self._stays & set(names):
            return False
        if not all(self._keeps_meaning(n) for n in node.input if n in self._weights):
            return False
        if node.domain == "com.microsoft":
            return True
        return node.domain in _STANDARD and self._allows(node)

    def _allows(self, node: Any) -> bool:
        schema = self._schema(node)
        if schema is None:
            return False
        half = "tensor(float16)"
        for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for index, name in enumerate(names):
                if name and self._is_float(name) and formal:
                    text = formal[min(index, len(formal) - 1)].type_str
                    if half not in self._allowed(schema, text):
                        return False
        return True

    def _keeps_meaning(self, name: str) -> bool:
        import numpy as np

        if not self._is_float(name):
            return True
        size = np.abs(self._onnx.numpy_helper.to_array(self._weights[name]))
        if bool(((size > _MOST) & (size < _AS_GOOD_AS_INFINITE)).any()):
            return False
        return size.size > _FEW or not bool(((size > 0) & (size < _LEAST)).any())

    def _from_sizes(self) -> set[str]:
        """Floats that are computed from sizes alone: pixels and elements soon exceed FP16."""
        found: set[str] = set()
        integers: set[str] = set()
        for node in self._graph.node:
            if _has_graphs(node):
                continue
            inputs = [n for n in node.input if n and n not in self._weights]
            if node.op_type in ("Shape", "Size"):
                integers.update(node.output)
            elif inputs and all(n in integers or n in found for n in inputs):
                for name in node.output:
                    (found if self._is_float(name) else integers).add(name)
        return found

    # types

    def _known_types(self, model: Any) -> dict[str, int]:
        """Element types by the values' names; those that nothing tells are absent."""
        inferred = model
        if not exceeds_protobuf(model):
            try:
                inferred = self._onnx.shape_inference.infer_shapes(model)
            except self._onnx.shape_inference.InferenceError:
                inferred = model
        types = {t.name: int(t.data_type) for t in model.graph.initializer}
        graph = inferred.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type.elem_type
            if value.type.WhichOneof("value") == "tensor_type" and kind:
                types[value.name] = int(kind)
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                if name and name not in types:
                    kind = self._guessed(node, index, types)
                    if kind is not None:
                        types[name] = kind
        return types

    def _guessed(self, node: Any, index: int, types: dict[str, int]) -> int | None:
        """The type of an output where inference ended, at a foreign operator before it perhaps."""
        if node.domain == "com.microsoft":
            return _FLOAT if any(types.get(n) == _FLOAT for n in node.input) else None
        if node.op_type == "Cast":
            return next((int(a.i) for a in node.attribute if a.name == "to"), None)
        schema = self._schema(node)
        if schema is None or not schema.outputs:
            return None
        text = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        for position, name in enumerate(node.input):
            formal = schema.inputs[min(position, len(schema.inputs) - 1)]
            if formal.type_str == text and name in types:
                return types[name]
        allowed = self._allowed(schema, text)
        return _KINDS.get(next(iter(allowed))) if len(allowed) == 1 else None

    def _schema(self, node: Any) -> Any:
        domain = "" if node.domain in _STANDARD else node.domain
        version = self._opsets.get(domain, self._opsets.get("ai.onnx"))
        try:
            return self._onnx.defs.get_schema(node.op_type, version, domain)
        except (self._onnx.defs.SchemaError, TypeError):
            return None

    def _allowed(self, schema: Any, text: str) -> set[str]:
        found = [c for c in schema.type_constraints if c.type_param_str == text]
        return set(found[0].allowed_type_strs) if found else {text}


_KINDS = {"tensor(float)": 1, "tensor(uint8)": 2, "tensor(int8)": 3, "tensor(int32)": 6, "tensor(int64)": 7,
          "tensor(string)": 8, "tensor(bool)": 9, "tensor(float16)": 10, "tensor(double)": 11}  # fmt: skip


def _has_graphs(node: Any) -> bool:
    return any(a.g.node or a.graphs or a.g.output for a in node.attribute)


def _captured(node: Any) -> Iterable[str]:
    """Names that graphs inside a node may read from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in all_nodes(graph):
                yield from inner.input
            for value in graph.output:
                yield value.name


def _inline_constants(graph: Any) -> None:
    """Constant nodes with floats become initializers, which are narrowed like any weight."""
    from onnx import numpy_helper

    kept = []
    for node in graph.node:
        found = {a.name: a for a in node.attribute} if node.op_type == "Constant" else {}
        if "value" in found and found["value"].t.data_type == _FLOAT:
            tensor = numpy_helper.from_array(
                numpy_helper.to_array(found["value"].t), node.output[0]
            )
        elif "value_float" in found or "value_floats" in found:
            import numpy as np

            number = (
                found["value_float"].f
                if "value_float" in found
                else list(found["value_floats"].floats)
            )
            tensor = numpy_helper.from_array(np.asarray(number, np.float32), node.output[0])
        else:
            kept.append(node)
            continue
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)
