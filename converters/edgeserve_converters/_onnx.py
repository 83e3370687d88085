"""What the converters from ONNX share. Standard library only at module level, like the converters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# What one protobuf file holds, with room for the graph.
_PROTOBUF_BYTES = 1_900_000_000


class UnsupportedOps(Exception):
    """Operators that a converter does not know; `unsupported_ops` are their types."""

    def __init__(self, model: Any, ops: Iterable[str], why: str) -> None:
        self.unsupported_ops = sorted(set(ops))
        named = "; ".join(f"operator {op} ({nodes_of(model, op)})" for op in self.unsupported_ops)
        super().__init__(f"{named}: {why}")


def nodes_of(model: Any, op: str) -> str:
    """The nodes of a graph, or of the graphs inside it, that are of type `Op` or `domain.Op`."""
    kind = op.rpartition(".")[2]
    names = [
        node.name or f"that writes {node.output[0]}"
        for node in all_nodes(model.graph)
        if node.op_type == kind
    ]
    if not names:
        return "in a function"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"node '{names[0]}'{more}"


def all_nodes(graph: Any) -> Iterable[Any]:
    """The nodes of a graph and of its If, Loop and Scan bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from all_nodes(inner)


def exceeds_protobuf(model: Any) -> bool:
    """Whether a model is too large for one file. protobuf cannot even tell the size of those above 2 GB."""
    from google.protobuf.message import EncodeError

    try:
        return bool(model.ByteSize() > _PROTOBUF_BYTES)
    except (EncodeError, ValueError):
        return True


def save(model: Any, destination: Path) -> list[Path]:
    """Write a model, its weights beside it where one file cannot hold them; the files."""
    import onnx

    if not exceeds_protobuf(model):
        onnx.save_model(model, str(destination))
        return [destination]
    data = destination.with_suffix(".data")
    onnx.save_model(
        model, str(destination), save_as_external_data=True, location=data.name, size_threshold=1024
    )
    return [destination, data]


def graph_inputs(model: Any) -> list[Any]:
    """The inputs that a caller feeds: older exporters list weights among the graph's inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def fix_shapes(model: Any, options: Mapping[str, object]) -> bool:
    """Fix dimensions in place as `input_shapes` and `batch` say; whether anything was changed."""
    shapes = options.get("input_shapes") or {}
    assert isinstance(shapes, Mapping)
    batch = int(str(options.get("batch") or 0))
    symbols: dict[str, int] = {}
    changed = False
    for value in graph_inputs(model):
        dims = value.type.tensor_type.shape.dim
        wanted = dict(enumerate(shapes.get(value.name, ())))
        if batch and dims:
            wanted.setdefault(0, batch)
        for index, size in wanted.items():
            dim = dims[index]
            if dim.HasField("dim_value"):
                continue
            if dim.dim_param:
                symbols[dim.dim_param] = int(size)
            dim.dim_value = int(size)
            changed = True
    if changed:
        # The same symbol elsewhere is the same size; sizes inferred before no longer hold.
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
        del model.graph.value_info[:]
    return changed


def part_outputs(model: Any) -> None:
    """Give every output that nodes read, too, an Identity of its own, in place.

    Tools that retype or re-lay out a tensor at the model's border (fp16 casts, channels last) otherwise
    do it to the inner readers as well, and write files that do not load.
    """
    from onnx import helper

    read = {name for node in all_nodes(model.graph) for name in node.input}
    for output in model.graph.output:
        if output.name not in read:
            continue
        inner = f"{output.name}_inner"
        for node in all_nodes(model.graph):
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output.name:
                        names[index] = inner
        model.graph.node.append(
            helper.make_node("Identity", [inner], [output.name], name=f"{output.name}_border")
        )


def pad_with_zeros(model: Any) -> None:
    """Give each MaxPool that pads what cannot be negative a Pad with zeros of its own, in place.

    The maximum is the same. ONNX pads it with the lowest float, which then is within the range of a tensor
    that int8 has 256 steps for.
    """
    from onnx import TensorProto, helper

    if not any(o.domain in ("", "ai.onnx") and o.version >= 11 for o in model.opset_import):
        return
    writers = {name: node for node in model.graph.node for name in node.output}
    floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    nodes = []
    for node in model.graph.node:
        pads = next((a for a in node.attribute if a.name == "pads"), None)
        if (
            node.op_type == "MaxPool"
            and pads is not None
            and any(pads.ints)
            and _strided(node)
            and not _may_be_negative(node.input[0], writers, floats)
        ):
            half = len(pads.ints) // 2
            sizes = [0, 0, *pads.ints[:half], 0, 0, *pads.ints[half:]]
            padded, amounts = f"{node.output[0]}/padded", f"{node.output[0]}/pads"
            model.graph.initializer.append(
                helper.make_tensor(amounts, TensorProto.INT64, [len(sizes)], sizes)
            )
            nodes.append(
                helper.make_node("Pad", [node.input[0], amounts], [padded], name=f"{padded}/node")
            )
            node.input[0] = padded
            pads.ints[:] = [0] * len(pads.ints)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _strided(node: Any) -> bool:
    """With stride 1 padding is TFLite's SAME, which needs no value."""
    return any(step > 1 for a in node.attribute if a.name == "strides" for step in a.ints)


def _may_be_negative(name: str, writers: Mapping[str, Any], floats: Mapping[str, Any]) -> bool:
    from onnx import numpy_helper

    node = writers.get(name)
    if node is None:
        return True
    if node.op_type in ("Relu", "Sigmoid", "HardSigmoid"):
        return False
    if node.op_type == "MaxPool":
        return _may_be_negative(node.input[0], writers, floats)
    if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in floats:
        return bool(numpy_helper.to_array(floats[node.input[1]]) < 0)
    return True
