"""The walk over an ONNX graph, node by node, from its inputs to its outputs."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from edgeserve.conversion.independence import (
    constants,
    layers,
    layout,
    pointwise,
    products,
    rearranging,
)
from edgeserve.conversion.independence.dims import ROWS, Dim, Element, symbol
from edgeserve.conversion.independence.states import (
    MOST_VALUES,
    Fixed,
    Interact,
    NotKnown,
    Op,
    Rows,
    Rule,
    State,
)

_STANDARD: Final = ("", "ai.onnx")
_RULES: Final[dict[str, dict[str, Rule]]] = {
    "": pointwise.RULES | layout.RULES | products.RULES | layers.RULES,
    "ai.onnx.ml": layers.CLASSIC,
    "com.microsoft": pointwise.MICROSOFT | products.MICROSOFT | layers.MICROSOFT,
}
# Of inputs that no request's data goes into.
_CONSTANTS: Final = constants.RULES | rearranging.RULES
# Why these let rows interact, whatever their inputs.
_MIXING: Final = {
    "Compress": "how many rows come out depends on the data",
    "DynamicQuantizeLinear": "its scale is taken over all rows",
    "DynamicQuantizeLSTM": "its scale is taken over all rows",
    "DynamicQuantizeMatMul": "its scale is taken over all rows",
    "NonMaxSuppression": "how many rows come out depends on the data",
    "NonZero": "how many rows come out depends on the data",
    "Unique": "how many rows come out depends on the data",
}


class Independence(msgspec.Struct, frozen=True):
    """Whether rows are known to be independent; `reason` says in words what shows that, or what does not."""

    known: bool
    reason: str


def rows_of_graph(proto: Any) -> Independence:
    """What a model's graph says of the rows of its batches. `proto` is an onnx.ModelProto, which is not
    changed; values of large tensors are not looked at and may be missing."""
    try:
        _Walk(_bare(proto)).run()
    except Interact as found:
        return Independence(False, f"rows interact ({found})")
    except NotKnown as found:
        return Independence(False, f"rows are not known to be independent ({found})")
    return Independence(True, "the graph keeps rows apart")


class _Walk:
    def __init__(self, proto: Any) -> None:
        self._graph = proto.graph
        self._opsets = {o.domain: o.version for o in proto.opset_import}
        self._inferred = _inferred_shapes(proto)
        self._states: dict[str, State] = {}
        self._wanted = _needed(proto.graph)

    def run(self) -> None:
        """Raises Interact, NotKnown."""
        graph = self._graph
        constant = {t.name for t in graph.initializer} | {
            t.values.name for t in graph.sparse_initializer
        }
        for tensor in graph.initializer:
            self._states[tensor.name] = constants.of_array(tensor)
        for tensor in graph.sparse_initializer:
            self._states[tensor.values.name] = Fixed(tuple(tensor.dims))
        self._states |= _inputs([v for v in graph.input if v.name not in constant])
        for node in graph.node:
            if any(o in self._wanted for o in node.output):
                self._visit(node)
        for value in graph.output:
            state = self._states.get(value.name)
            if not isinstance(state, Rows):
                raise Interact(f"output '{value.name}' does not depend on the rows")
            if state.axis != 0 or state.block != 1:
                raise Interact(
                    f"output '{value.name}' does not have one row for each row of the inputs"
                )

    def _visit(self, node: Any) -> None:
        from onnx import AttributeProto, helper

        inputs = [self._state(name) if name else None for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        domain = "" if node.domain in _STANDARD else node.domain
        opset = self._opsets.get(node.domain, self._opsets.get("ai.onnx" if not domain else "", 1))
        op = Op(node, inputs, attributes, opset, self._inferred.get)
        rows = any(isinstance(s, Rows) for s in inputs)
        graphs = [
            a for a in node.attribute if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        ]
        if graphs:
            rows = rows or any(isinstance(self._states.get(n), Rows) for n in _captured(graphs))
            if rows or any(isinstance(s, Fixed) and s.counts for s in inputs):
                op.unknown("what it does depends on the graphs inside of it")
        rule = self._rule(op, domain, rows=rows)
        try:
            made = rule(op)
        except (Interact, NotKnown):
            raise
        except Exception as error:  # noqa: BLE001 - a graph that breaks a rule is not known
            op.unknown(f"it does not fit its definition ({type(error).__name__})")
        for name, state in zip(node.output, made, strict=False):
            if name and state is not None:
                self._states[name] = state

    def _state(self, name: str) -> State:
        if name not in self._states:
            raise NotKnown(f"nothing is known of '{name}'")
        return self._states[name]

    def _rule(self, op: Op, domain: str, *, rows: bool) -> Rule:
        kind = op.kind
        if not domain and kind in constants.RANDOM:
            op.interact("its answers are random")
        if not domain and kind in ("Shape", "Size"):
            return _CONSTANTS[kind]
        if not rows:
            return constants.anything if domain else _CONSTANTS.get(kind, constants.anything)
        if kind in _MIXING:
            op.interact(_MIXING[kind])
        rule = _RULES.get(domain, {}).get(kind)
        if rule is None:
            op.unknown("nothing is known of this operator")
        return rule


def _inputs(values: list[Any]) -> dict[str, State]:
    """The rows of the inputs. Raises NotKnown where they have none, or not the same."""
    states: dict[str, State] = {}
    names: dict[str, str] = {}
    for value in values:
        tensor = value.type.tensor_type
        dims = list(tensor.shape.dim)
        if not dims or _is_fixed(dims[0]):
            raise NotKnown(f"input '{value.name}' has no dynamic first dimension")
        if _is_named(dims[0]):
            names[dims[0].dim_param] = value.name
        states[value.name] = Rows(
            (ROWS, *(_size(d, value.name, i) for i, d in enumerate(dims) if i))
        )
    if len(names) > 1:
        told = ", ".join(f"'{owner}' has {name}" for name, owner in names.items())
        raise NotKnown(f"the first axes of the inputs may differ: {told}")
    for state in states.values():
        assert isinstance(state, Rows)
        for size in state.shape[1:]:
            if isinstance(size, Dim) and size.symbols[0] in names:
                raise NotKnown("an input has the number of rows on another axis, too")
    return states


def _size(dim: Any, name: str, place: int) -> Element:
    if _is_fixed(dim):
        return int(dim.dim_value)
    return symbol(dim.dim_param if _is_named(dim) else f"{name}.{place}")


def _is_fixed(dim: Any) -> bool:
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


def _is_named(dim: Any) -> bool:
    """Some exporters write `?` or -1 for any size, which is not a name."""
    return dim.dim_param not in ("", "?", "-1", "None")


def _needed(graph: Any) -> set[str]:
    """The tensors that outputs are made of."""
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if any(o in needed for o in node.output):
            needed.update(node.input)
            needed.update(_captured([a for a in node.attribute if a.g.node or a.graphs]))
    return needed


def _captured(attributes: list[Any]) -> set[str]:
    """All names that nodes of these graphs read, from outside or not."""
    names: set[str] = set()
    for attribute in attributes:
        for graph in (attribute.g, *attribute.graphs):
            names.update(value.name for value in graph.output)
            for node in graph.node:
                names.update(node.input)
                names |= _captured(list(node.attribute))
    return names


def _bare(proto: Any) -> Any:
    """The model with its local functions written out, and without the data of large tensors: their shapes are
    enough, and a model may be larger than protobuf can take."""
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph, source = bare.graph, proto.graph
    graph.name = "rows"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= MOST_VALUES:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    if not proto.functions:
        return bare
    from onnx import inliner

    return inliner.inline_local_functions(bare)


def _inferred_shapes(proto: Any) -> dict[str, list[int | None]]:
    """Ranks and sizes of tensors by ONNX's own shape inference; what the file says of them is not believed."""
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.graph.name = "rows"
    bare.graph.node.extend(proto.graph.node)
    bare.graph.input.extend(proto.graph.input)
    for value in proto.graph.output:
        out = bare.graph.output.add(name=value.name)
        out.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    for tensor in proto.graph.initializer:
        small = math.prod(tensor.dims) <= MOST_VALUES
        if small and tensor.data_location == onnx.TensorProto.DEFAULT:
            bare.graph.initializer.append(tensor)
        else:
            known = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(known)
    try:
        shaped = onnx.shape_inference.infer_shapes(bare, strict_mode=False, data_prop=True)
    except Exception:  # noqa: BLE001 - then less is known
        shaped = bare
    found: dict[str, list[int | None]] = {}
    for value in (*shaped.graph.value_info, *shaped.graph.output, *shaped.graph.input):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = [
                int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim
            ]
    return found
