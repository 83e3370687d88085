"""FP16 files load and give the source's numbers, whatever the graph has: run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve_converters.onnx_to_onnx import CONVERTER
from tests.networks import small_cnn

Model = onnx.ModelProto
RANDOM = np.random.default_rng(5)
node, info = helper.make_node, helper.make_tensor_value_info
F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> Model:
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(made)
    return made


def dense(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32) / np.sqrt(shape[0]).astype(np.float32)


def cast_of_a_size() -> Model:
    """A size made into a divisor: the Cast to FLOAT stays, its reader is in FP16."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Shape", ["m"], ["s"]),
        node("Cast", ["s"], ["f"], to=F), node("ReduceMean", ["f"], ["d"], keepdims=0),
        node("Div", ["m", "d"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [info("x", F, ["b", 8])], [info("y", F, ["b", 8])], w=dense(8, 8))


def elements_beyond_fp16() -> Model:
    """The number of elements of [2, 8] by itself is small; times 100,000 no FP16 holds it."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Size", ["m"], ["s"]), node("Mul", ["s", "k"], ["l"]),
        node("Cast", ["l"], ["f"], to=F), node("Mul", ["m", "f"], ["p"]), node("Div", ["p", "f"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, [2, 8])], [info("y", F, [2, 8])], w=dense(8, 8), k=np.int64(100_000)
    )


def mask() -> Model:
    """1 - mask, times the lowest float, added to scores."""
    nodes = [
        node("Cast", ["mask"], ["f"], to=F), node("Sub", ["one", "f"], ["inverse"]),
        node("Mul", ["inverse", "low"], ["bias"]), node("MatMul", ["x", "w"], ["scores"]),
        node("Add", ["scores", "bias"], ["masked"]), node("Softmax", ["masked"], ["y"], axis=-1),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, [1, 8]), info("mask", INT, [1, 8])], [info("y", F, [1, 8])],
        w=dense(8, 8), one=np.float32(1), low=np.float32(-3.4028235e38),
    )  # fmt: skip


def large_constant() -> Model:
    """Divided by what FP16 cannot hold and multiplied by it again."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Mul", ["m", "k"], ["l"]),
        node("Div", ["l", "k"], ["y"]),
    ]
    return model(
        nodes, [info("x", F, ["b", 8])], [info("y", F, ["b", 8])], w=dense(8, 8), k=np.float32(3e5)
    )


def epsilon() -> Model:
    """x / (|x - x| + 1e-12) * 1e-12: in FP16 the epsilon is 0."""
    nodes = [
        node("Sub", ["x", "x"], ["zero"]), node("Add", ["zero", "e"], ["d"]), node("Div", ["e", "d"], ["q"]),
        node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "q"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes,
        [info("x", F, ["b", 8])],
        [info("y", F, ["b", 8])],
        w=dense(8, 8),
        e=np.float32(1e-12),
    )


def branches() -> Model:
    """If, whose branches read a value and a weight from outside."""
    then = helper.make_graph([node("MatMul", ["m", "w"], ["a"])], "then", [], [info("a", F, None)])
    other = helper.make_graph([node("Neg", ["m"], ["n"])], "else", [], [info("n", F, None)])
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["i"], then_branch=then, else_branch=other),
        node("MatMul", ["i", "w"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, [2, 8])], [info("y", F, [2, 8])], w=dense(8, 8), zero=np.float32(0)
    )


def loop() -> Model:
    """Three times: s <- relu(s @ w), with w from outside."""
    body = helper.make_graph(
        [node("MatMul", ["s", "w"], ["p"]), node("Relu", ["p"], ["t"]), node("Identity", ["go"], ["on"])],
        "body", [info("i", INT, []), info("go", B, []), info("s", F, None)],
        [info("on", B, []), info("t", F, None)],
    )  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Loop", ["n", "", "m"], ["l"], body=body),
        node("MatMul", ["l", "w"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, [2, 8])], [info("y", F, [2, 8])], w=dense(8, 8), n=np.int64(3)
    )


def resize() -> Model:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Resize", ["c", "", "scales"], ["r"], mode="linear"),
        node("Conv", ["r", "v"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, ["b", 3, 8, 8])], [info("y", F, ["b", 2, 16, 16])],
        w=dense(4, 3, 3, 3), v=dense(2, 4, 1, 1), scales=np.asarray([1, 1, 2, 2], np.float32),
    )  # fmt: skip


def ranges() -> Model:
    """Positions by Range and CumSum, added to what is computed in FP16."""
    nodes = [
        node("Range", ["start", "limit", "step"], ["r"]), node("CumSum", ["r", "axis"], ["c"]),
        node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "c"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, [info("x", F, ["b", 8])], [info("y", F, ["b", 8])], w=dense(8, 8),
        start=np.float32(0), limit=np.float32(8), step=np.float32(1), axis=np.int64(0),
    )  # fmt: skip


def recurrent() -> Model:
    """An LSTM that leaves out inputs, its states going in and out."""
    nodes = [node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y", "hn", "cn"], hidden_size=4)]
    state = [1, 1, 4]
    return model(
        nodes, [info("x", F, [3, 1, 8]), info("h", F, state), info("c", F, state)],
        [info("y", F, [3, 1, 1, 4]), info("hn", F, state), info("cn", F, state)],
        w=dense(1, 16, 8), r=dense(1, 16, 4),
    )  # fmt: skip


def output_inside() -> Model:
    """Outputs that are read inside, twice the same value, an input and a weight."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"]),
        node("Identity", ["m"], ["again"]), node("Identity", ["x"], ["same"]),
        node("Identity", ["w"], ["weight"]),
    ]  # fmt: skip
    outputs = [info(n, F, ["b", 8]) for n in ("m", "y", "again", "same")] + [
        info("weight", F, [8, 8])
    ]
    return model(nodes, [info("x", F, ["b", 8])], outputs, w=dense(8, 8))


def foreign() -> Model:
    """An operator of onnxruntime, whose types no inference knows, between standard ones without names."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Gelu", ["m"], ["g"], domain="com.microsoft"),
        node("MatMul", ["g", "w"], ["n"]), node("Sigmoid", ["n"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [info("x", F, ["b", 8])], [info("y", F, ["b", 8])], w=dense(8, 8))


def constants() -> Model:
    """Constants as nodes, a fill value, a choice, and integers that stay what they are."""
    shape = node(
        "Constant", [], ["shape"], value=numpy_helper.from_array(np.asarray([1, 8], np.int64))
    )
    half = node("Constant", [], ["half"], value_float=0.5)
    fill = node("ConstantOfShape", ["shape"], ["f"],
                value=numpy_helper.from_array(np.asarray([2.5], np.float32)))  # fmt: skip
    nodes = [
        shape, half, fill, node("MatMul", ["x", "w"], ["m"]), node("Greater", ["m", "half"], ["large"]),
        node("Where", ["large", "f", "m"], ["v"]), node("ArgMax", ["v"], ["best"], axis=1, keepdims=0),
        node("Mul", ["v", "half"], ["y"]),
    ]  # fmt: skip
    outputs = [info("y", F, ["b", 8]), info("best", INT, ["b"])]
    return model(nodes, [info("x", F, ["b", 8])], outputs, w=dense(8, 8))


MODELS: list[Callable[[], Model]] = [
    small_cnn, cast_of_a_size, elements_beyond_fp16, mask, large_constant, epsilon, branches, loop, resize,
    ranges, recurrent, output_inside, foreign, constants,
]  # fmt: skip


def feeds(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    random = np.random.default_rng(1)
    found = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        numbers = random.normal(size=shape).astype(np.float32)
        found[value.name] = (
            numbers if value.type == "tensor(float)" else (numbers > 0).astype(np.int64)
        )
    return found


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_fp16_loads_and_gives_the_numbers(tmp_path: Path, make: Callable[[], Model]) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out"
    out.mkdir()
    onnx.save(make(), source)
    (file,) = CONVERTER.convert(source, out, {"precision": "fp16"})
    first, second = (
        onnxruntime.InferenceSession(str(f), providers=["CPUExecutionProvider"])
        for f in (source, file)
    )
    assert [(v.name, v.type, v.shape) for v in second.get_inputs() + second.get_outputs()] == [
        (v.name, v.type, v.shape) for v in first.get_inputs() + first.get_outputs()
    ]
    inputs = feeds(first)
    for want, got in zip(first.run(None, inputs), second.run(None, inputs), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)
    kinds = {t.data_type for t in onnx.load(file).graph.initializer if t.dims}
    assert TensorProto.FLOAT16 in kinds or make is output_inside
