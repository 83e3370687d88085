"""Models as nobody draws them on purpose: each converts, and every candidate of its chain answers what
onnxruntime answers; or convert says in a sentence why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, ChainOptions, golden_batches
from edgeserve.errors import UsageError
from tests.conversion.tiny import (
    BOOL,
    I32,
    I64,
    F,
    elsewhere,
    looping,
    model,
    node,
    noise,
    saved,
    value,
)  # fmt: skip

pytest.importorskip("openvino")

W = noise(8, 4)
Draw = Callable[[], onnx.ModelProto]


def linear(
    extra: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], opset: int = 17
) -> onnx.ModelProto:
    """`z` = x W, and what else."""
    return model(
        [node("MatMul", "x w", "z"), *extra], [value("x", F, "batch", 8)],
        [value("z", F, "batch", 4), *outputs], {"w": W}, opset=opset,
    )  # fmt: skip


def typed(kind: int, dtype: type) -> onnx.ModelProto:
    return model(
        [node("MatMul", "x w", "y")], [value("x", kind, "batch", 8)],
        [value("y", kind, "batch", 4)], {"w": W.astype(dtype)},
    )  # fmt: skip


def input_that_is_an_output() -> onnx.ModelProto:
    made = linear([], [])
    made.graph.output.append(value("x", F, "batch", 8))
    return made


def optional_input() -> onnx.ModelProto:
    made = model(
        [node("MatMul", "x w", "a"), node("Mul", "a scale", "y")], [value("x", F, "batch", 8)],
        [value("y", F, "batch", 4)], {"w": W, "scale": np.float32([2])},
    )  # fmt: skip
    made.graph.input.append(value("scale", F, 1))
    return made


def strange_names() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["in/put:0 größe", "w"], ["out:0/日本 x"])]
    graph = helper.make_graph(
        nodes, "names", [value("in/put:0 größe", F, "batch", 8)],
        [value("out:0/日本 x", F, "batch", 4)], [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def choice() -> onnx.ModelProto:
    yes = helper.make_graph([node("Add", "x x", "a")], "yes", [], [value("a", F, "batch", 8)])
    no = helper.make_graph([node("Mul", "x x", "b")], "no", [], [value("b", F, "batch", 8)])
    return model(
        [node("If", "c", "y", then_branch=yes, else_branch=no)],
        [value("x", F, "batch", 8), value("c", BOOL)], [value("y", F, "batch", 8)],
    )  # fmt: skip


def running_sum() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Add", "s e", "next"), node("Identity", "next", "o")], "body",
        [value("s", F, 4), value("e", F, 4)], [value("next", F, 4), value("o", F, 4)],
    )  # fmt: skip
    return model(
        [node("Scan", "start x", "last y", body=body, num_scan_inputs=1)],
        [value("start", F, 4), value("x", F, "t", 4)], [value("last", F, 4), value("y", F, "t", 4)],
    )  # fmt: skip


def found_rows(threshold: float) -> onnx.ModelProto:
    return model(
        [node("Greater", "x t", "g"), node("NonZero", "g", "nz"), node("Transpose", "nz", "y")],
        [value("x", F, 8)], [value("y", I64, "found", 1)], {"t": np.float32(threshold)},
    )  # fmt: skip


ZOO: dict[str, Draw] = {
    "scalar-output": lambda: model(
        [node("ReduceSum", "x", "y", keepdims=0)], [value("x", F, 2, 3)], [value("y", F)]
    ),
    "no-rows": lambda: found_rows(9),
    "some-rows": lambda: found_rows(0),
    "unequal-first-dimensions": lambda: model(
        [node("MatMul", "a b", "y")], [value("a", F, "n", 8), value("b", F, 8, "m")],
        [value("y", F, "n", "m")],
    ),
    "two-open-dimensions": lambda: model(
        [node("Concat", "a b", "y", axis=1)], [value("a", F, "batch", "n"), value("b", F, "batch", "m")],
        [value("y", F, "batch", "k")],
    ),
    "bool": lambda: model(
        [node("Not", "x", "y")], [value("x", BOOL, "batch", 4)], [value("y", BOOL, "batch", 4)]
    ),
    "fp16": lambda: typed(TensorProto.FLOAT16, np.float16),
    "fp64": lambda: typed(TensorProto.DOUBLE, np.float64),
    "optional-input": optional_input,
    "output-left-out": lambda: model(
        [helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=2)],
        [value("x", F, "t", 1, 3)], [value("h", F, 1, 1, 2)],
        {"w": noise(1, 8, 3), "r": noise(1, 8, 2)},
    ),
    "passed-through": lambda: linear([node("Identity", "x", "y")], [value("y", F, "batch", 8)]),
    "input-is-output": input_that_is_an_output,
    "constant-output": lambda: linear(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1, 2])))],
        [value("c", F, 2)],
    ),
    "unused-input": lambda: model(
        [node("MatMul", "x w", "y")], [value("x", F, "batch", 8), value("u", I32, "batch", 3)],
        [value("y", F, "batch", 4)], {"w": W},
    ),
    "strange-names": strange_names,
    "quantized": lambda: model(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"),
         node("DequantizeLinear", "wq ws", "w"), node("MatMul", "d w", "y")],
        [value("x", F, "batch", 8)], [value("y", F, "batch", 4)],
        {"s": np.float32(0.05), "z": np.uint8(128), "wq": (40 * W).astype(np.int8),
         "ws": np.float32(0.025)},
    ),
    "lookup": lambda: model(
        [node("Gather", "table ids", "y")], [value("ids", I32, "batch", 5)],
        [value("y", I64, "batch", 5)], {"table": 1000 * np.arange(50)},
    ),
    "uint64": lambda: model(
        [node("Cast", "x", "y", to=F)], [value("x", TensorProto.UINT64, "batch", 2)],
        [value("y", F, "batch", 2)],
    ),
    "loop": looping,
    "if": choice,
    "scan": running_sum,
    "opset-7": lambda: linear([node("Relu", "z", "y")], [value("y", F, "batch", 4)], opset=7),
    "opset-23": lambda: linear([node("Relu", "z", "y")], [value("y", F, "batch", 4)], opset=23),
}  # fmt: skip
QUICK = ("no-rows", "unused-input", "strange-names", "uint64", "constant-output")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ZOO]
)
def test_every_candidate_answers_what_the_source_answers(tmp_path: Path, name: str) -> None:
    report = edgeserve.convert(
        saved(ZOO[name](), tmp_path), tmp_path / "m.edge",
        target=elsewhere(tmp_path, "openvino", "onnxruntime"),
    )  # fmt: skip
    assert "onnxruntime" in {c.runtime for c in report.chain}
    bundle = Bundle.open(tmp_path / "m.edge")
    inputs, outputs = (golden_batches(bundle.manifest.interface, t) for t in bundle.golden())
    for candidate in report.chain:
        only = ChainOptions(variant=candidate.variant, fallback=False)
        with Chain(bundle, only) as chain:
            for request, wanted in zip(inputs, outputs, strict=True):
                bundle.manifest.interface.check(request)
                got, who = chain.run(request)
                assert who.variant == candidate.variant
                for spec in bundle.manifest.interface.outputs:
                    assert got[spec.name].dtype == spec.numpy_dtype
                    assert got[spec.name].shape == wanted[spec.name].shape
                    assert np.allclose(got[spec.name], wanted[spec.name], rtol=5e-3, atol=5e-3)


def unranked() -> onnx.ModelProto:
    made = linear([], [])
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


REFUSED: dict[str, tuple[Draw, str]] = {
    "unknown-rank": (unranked, "shape"),
    "sequence": (
        lambda: helper.make_model(
            helper.make_graph(
                [node("SplitToSequence", "x", "y", axis=0)], "sequence", [value("x", F, 2, 4)],
                [helper.make_tensor_sequence_value_info("y", F, None)],
            ),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
        ),
        "'y' is a sequence_type, not a tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    draw, why = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        edgeserve.convert(saved(draw(), tmp_path), tmp_path / "m.edge")
    assert why in str(caught.value)
