"""In which precision a model's layers keep their weights, by what the file holds and not by its name.

A layer is an operator with constant weights: a convolution, a product of matrices, a recurrent cell, a lookup
in a table. A product of two activations counts where its inputs are quantized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from edgeserve.bundle import Precision

Layers = Mapping[str, int]

_ONNX_LAYERS: Final = {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Gather",
                       "Attention", "FusedMatMul", "FusedConv", "EmbedLayerNormalization"}  # fmt: skip
_ONNX_INTEGER: Final = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm",
                        "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM",
                        "QAttention", "QEmbedLayerNormalization", "MatMulNBits", "MatMulBnb4",
                        "GatherBlockQuantized", "QOrderedMatMul"}  # fmt: skip
# Operators between a constant and the layer that it is a weight of.
_ONNX_CARRIES: Final = {
    "DequantizeLinear",
    "QuantizeLinear",
    "Cast",
    "Transpose",
    "Identity",
    "Reshape",
}
_IR_LAYERS: Final = {"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData",
                     "GroupConvolutionBackpropData", "LSTMSequence", "GRUSequence", "RNNSequence",
                     "LSTMCell", "GRUCell", "RNNCell", "Gather"}  # fmt: skip
_IR_CARRIES: Final = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Unsqueeze", "FakeQuantize",
                      "FakeConvert", "Squeeze"}  # fmt: skip
_TFLITE_LAYERS: Final = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED",
                         "BATCH_MATMUL", "LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM",
                         "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM",
                         "BIDIRECTIONAL_SEQUENCE_RNN", "EMBEDDING_LOOKUP", "GATHER"}  # fmt: skip
_QUANTIZED: Final = ("int8", "int4")


def quantized_in(layers: Layers) -> int:
    return sum(layers.get(precision, 0) for precision in _QUANTIZED)


def precision_held(layers: Layers) -> Precision:
    """The precision of half of the layers or more; FP32 where they differ, or there are none."""
    total = sum(layers.values())
    quantized = quantized_in(layers)
    if quantized and 2 * quantized >= total:
        return "int4" if layers.get("int4", 0) > layers.get("int8", 0) else "int8"
    return "fp16" if layers.get("fp16", 0) and 2 * layers["fp16"] >= total else "fp32"


def layers_text(layers: Layers) -> str | None:
    """`int8: 3 of 7 layers`; None where no layer has fewer bits than 32."""
    total = sum(layers.values())
    parts = [f"{p}: {n} of {total} layers" for p, n in sorted(layers.items()) if p != "fp32"]
    return ", ".join(parts) or None


def _named(dtype: str) -> str | None:
    """The precision of an element type of weights; None for indices and the like."""
    short = dtype.lower().removeprefix("element.").strip()
    for names, precision in (
        (("float", "float32", "f32", "double", "float64", "f64"), "fp32"),
        (("float16", "f16"), "fp16"),
        (("bfloat16", "bf16"), "bf16"),
        (("int8", "uint8", "i8", "u8", "int8_t", "uint8_t", "float8e4m3fn", "float8e5m2"), "int8"),
        (("int4", "uint4", "i4", "u4", "nf4", "int2", "uint2", "float4e2m1"), "int4"),
    ):
        if short in names:
            return precision
    return None


def onnx_layers(proto: Any) -> Layers:
    """Of an `onnx.ModelProto`, whose external data need not be loaded."""
    from onnx import TensorProto

    graphs = list(_graphs(proto.graph))
    nodes = [n for g in graphs for n in g.node] + [n for f in proto.functions for n in f.node]

    def called(data_type: int) -> str:
        known = data_type in TensorProto.DataType.values()
        return TensorProto.DataType.Name(data_type) if known else f"type {data_type}"

    types = {t.name: called(t.data_type) for g in graphs for t in g.initializer}
    for node in nodes:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                types[node.output[0]] = called(value.data_type)
    makers = {name: node for node in nodes for name in node.output}

    def weight(name: str) -> str | None:
        """The precision of the constant that a value is made of, None where it is an activation."""
        for _ in range(8):
            if name in types:
                return _named(types[name])
            node = makers.get(name)
            if node is None or node.op_type not in _ONNX_CARRIES:
                return None
            name = node.input[0]
        return None

    counts: Counter[str] = Counter()
    for node in nodes:
        if node.op_type in _ONNX_INTEGER:
            bits = next((a.i for a in node.attribute if a.name == "bits"), 8)
            counts["int4" if bits < 8 or node.op_type == "MatMulBnb4" else "int8"] += 1
        elif node.op_type in _ONNX_LAYERS:
            inputs = node.input[:1] if node.op_type == "Gather" else node.input[:3]
            found = [p for p in map(weight, inputs) if p is not None]
            made_by = [makers.get(name) for name in inputs]
            if not found and any(
                m is not None and m.op_type == "DequantizeLinear" for m in made_by
            ):
                found = ["int8"]
            counts.update(_fewest(found))
    return dict(counts)


def openvino_layers(model: Any) -> Layers:
    """Of an `openvino.Model`."""

    def weight(output: Any) -> str | None:
        quantized = False
        for _ in range(12):
            node = output.get_node()
            kind = node.get_type_name()
            if kind == "Constant":
                name = _named(str(node.get_output_element_type(0).get_type_name()))
                return "int8" if quantized and name in ("fp32", "fp16") else name
            if kind not in _IR_CARRIES:
                return "int8" if quantized and kind != "Parameter" else None
            quantized = quantized or kind == "FakeQuantize"
            output = node.input_value(0)
        return None

    counts: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() in _IR_LAYERS:
            size = 1 if op.get_type_name() == "Gather" else op.get_input_size()
            found = [weight(op.input_value(i)) for i in range(size)]
            counts.update(_fewest(p for p in found if p is not None))
    return dict(counts)


def tflite_layers(model: Any, schema: Any) -> Layers:
    """Of an unpacked TFLite model (`ModelT`)."""
    operators = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    codes = [
        operators.get(max(c.builtinCode, c.deprecatedBuiltinCode), "") for c in model.operatorCodes
    ]
    counts: Counter[str] = Counter()
    for graph in model.subgraphs:
        constants = {
            i: _named(types.get(t.type, ""))
            for i, t in enumerate(graph.tensors)
            if _holds_data(model.buffers[t.buffer])
        }
        for op in graph.operators or ():
            if codes[op.opcodeIndex] == "DEQUANTIZE" and int(op.inputs[0]) in constants:
                constants[int(op.outputs[0])] = constants[int(op.inputs[0])]
        for op in graph.operators or ():
            if codes[op.opcodeIndex] in _TFLITE_LAYERS:
                found = [constants.get(int(i)) for i in op.inputs]
                counts.update(_fewest(p for p in found if p is not None))
    return dict(counts)


def _holds_data(buffer: Any) -> bool:
    return bool(buffer.size if buffer.data is None else len(buffer.data))


def _fewest(found: Iterable[str]) -> list[str]:
    """The precision of a layer with several constants: biases and scales keep more bits than weights."""
    order = ("int4", "int8", "fp16", "bf16", "fp32")
    kept = set(found)
    return next(([p] for p in order if p in kept), [])


def _graphs(graph: Any) -> Iterable[Any]:
    """The graph and all inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.g.node else []) + list(attribute.graphs):
                yield from _graphs(inner)
