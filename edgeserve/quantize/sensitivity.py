"""Which layers a quantized model loses its precision in: per-layer SQNR against the fp32 model.

Each layer is looked at by itself: a graph is made of the fp32 model and, beside each of its layers, the
quantized one on the same fp32 inputs, rounded. So a bad layer does not make those behind it look bad. Noise,
power and mean are summed up inside the graph: memory does not grow with the samples or the layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.quantize.onnx_tools import as_unsupported, quantization, silenced
from edgeserve.runtimes.onnx_texts import decoded
from edgeserve.tensors import Tensors

_LAYERS: Final = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "AveragePool",
                  "GlobalAveragePool"}  # fmt: skip
_ROUNDING: Final = {"QuantizeLinear", "DequantizeLinear"}
_PREFIX: Final = "edgeserve/"
_SUMS: Final = ("noise", "power", "mean")
# What varies by less than this share of its power is a constant, which fp32 sums alone blur.
_SMALLEST: Final = 1e-10
# Better than this is exact: fp32 itself keeps no more.
_EXACT_DB: Final = 150.0


class LayerError(msgspec.Struct, frozen=True):
    """One layer: `sqnr_db` of what it computes from rounded inputs and weights,
    beside the spread of its values.

    `unit` are the nodes to leave in fp32 for this layer's sake: itself, and what writes its inputs, for
    their outputs are rounded on their account, too.
    """

    node: str
    op: str
    sqnr_db: float
    unit: tuple[str, ...]


def rank_layers(
    fp32: Path, quantized: Path, samples: Iterable[Tensors], work: Path
) -> list[LayerError]:
    """The layers of `fp32` that are quantized in `quantized`, made from it (QDQ), the noisiest first.

    Raises UnsupportedModel when onnxruntime cannot run the two beside each other.
    """
    tools = quantization()
    with silenced(), as_unsupported(fp32):
        model = tools.onnx.load_model(str(fp32))
        layers = _beside(tools.onnx, model, tools.onnx.load_model(str(quantized)))
        if not layers:
            return []
        combined = work / "beside.onnx"
        tools.onnx.save_model(
            model, str(combined), save_as_external_data=True, location="beside.data"
        )
        noise = _noise(combined, [layer.name for layer in layers], samples)
    writers = {name: node for node in model.graph.node for name in node.output}
    found = [
        LayerError(layer.name, layer.op_type, noise[layer.name], _unit(layer, writers))
        for layer in layers
    ]
    return sorted(found, key=lambda e: e.sqnr_db)


def head_layers(model: Path, layers: Collection[str]) -> tuple[str, ...]:
    """Those of these layers that compute the outputs of a model, activations and reshapes aside."""
    with silenced(), as_unsupported(model):
        graph = quantization().onnx.load_model(str(model), load_external_data=False).graph
    writers = {name: node for node in graph.node for name in node.output}
    heads = [_layer_behind(output.name, writers) for output in graph.output]
    return tuple(dict.fromkeys(n.name for n in heads if n is not None and n.name in layers))


def _beside(onnx: Any, model: Any, quantized: Any) -> list[Any]:
    """Add to `model` the quantized layers, on its own tensors, and what compares them; its layers."""
    helper, graph = onnx.helper, model.graph
    layers = {n.name: n for n in graph.node if n.op_type in _LAYERS and n.name}
    known = {name for n in graph.node for name in n.output} | {v.name for v in graph.input} | {""}
    known |= {t.name for t in graph.initializer}
    extra = [t for t in quantized.graph.initializer if t.name not in known]
    graph.initializer.extend(extra)
    known |= {t.name for t in extra}
    renamed: dict[str, str] = {}
    compared = []
    for node in _in_order(quantized.graph):
        rounding = node.op_type in _ROUNDING
        if not rounding and not (node.name in layers and any(n in renamed for n in node.input)):
            continue
        shadow = onnx.NodeProto()
        shadow.CopyFrom(node)
        shadow.name = f"{_PREFIX}{node.name}"
        shadow.input[:] = [renamed.get(name, name) for name in node.input]
        shadow.output[:] = [f"{_PREFIX}{name}" for name in node.output]
        if any(name not in known for name in shadow.input):
            continue  # it reads a tensor that only the quantized graph has
        graph.node.append(shadow)
        known.update(shadow.output)
        if rounding:
            renamed |= dict(zip(node.output, shadow.output, strict=True))
        else:
            compared.append((layers[node.name], shadow.output[0]))
    del graph.output[:]
    del graph.value_info[:]
    for node, output in compared:
        base = f"{_PREFIX}{node.name}"
        graph.node.extend(
            [
                helper.make_node("Sub", [node.output[0], output], [f"{base}/error"]),
                *_power(helper, f"{base}/error", f"{base}/noise"),
                *_power(helper, node.output[0], f"{base}/power"),
                helper.make_node("ReduceMean", [node.output[0]], [f"{base}/mean"], keepdims=0),
            ]
        )
        graph.output.extend(
            helper.make_tensor_value_info(f"{base}/{what}", onnx.TensorProto.FLOAT, [])
            for what in _SUMS
        )
    return [node for node, _ in compared]


def _in_order(graph: Any) -> list[Any]:
    """The nodes, each after those that write what it reads: quantizers append theirs at the end."""
    written = {name for n in graph.node for name in n.output}
    waiting, ordered = list(graph.node), []
    done: set[str] = set()
    while waiting:
        ready = [n for n in waiting if all(i in done or i not in written for i in n.input)]
        if not ready:
            raise ValueError("the quantized graph has a cycle")
        ordered += ready
        done.update(name for n in ready for name in n.output)
        waiting = [n for n in waiting if n.output[0] not in done]
    return ordered


def _power(helper: Any, source: str, destination: str) -> list[Any]:
    return [
        helper.make_node("Mul", [source, source], [f"{destination}/squares"]),
        helper.make_node("ReduceMean", [f"{destination}/squares"], [destination], keepdims=0),
    ]


def _noise(file: Path, layers: list[str], samples: Iterable[Tensors]) -> dict[str, float]:
    """SQNR in dB by layer. What a layer always adds is not signal: only the spread of its values is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Optimization would fuse what is to be compared into int8 kernels, differently at every place.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [f"{_PREFIX}{layer}/{what}" for layer in layers for what in _SUMS]
    sums = np.zeros(len(names))
    count = 0
    for inputs in samples:
        count += 1
        sums += np.array([float(v) for v in session.run(names, decoded(inputs))])
    noise, power, mean = (sums[i :: len(_SUMS)] / max(count, 1) for i in range(len(_SUMS)))
    signal = np.maximum(power - mean**2, _SMALLEST * power)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(signal / noise)
    clean = np.nan_to_num(decibels, nan=_EXACT_DB, posinf=_EXACT_DB, neginf=-_EXACT_DB)
    return dict(zip(layers, map(float, clean), strict=True))


def _unit(layer: Any, writers: dict[str, Any]) -> tuple[str, ...]:
    behind = [_layer_behind(name, writers) for name in layer.input if name in writers]
    return (layer.name, *sorted({n.name for n in behind if n is not None}))


def _layer_behind(name: str, writers: dict[str, Any]) -> Any:
    """The layer that writes a tensor, activations and reshapes between them aside."""
    node = writers.get(name)
    while node is not None and node.op_type not in _LAYERS:
        following = [n for n in node.input if n in writers]
        node = writers[following[0]] if following else None
    return node
