"""Which graphs keep the rows of a batch apart: a table of small ones, and random row-wise ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeserve.conversion.independence import rows_of_graph
from tests.networks import attention, bottlenecks, perceptron, small_cnn

F, INTS = TensorProto.FLOAT, TensorProto.INT64
Shape = list[int | str | None]


@dataclass
class Graph:
    """Nodes as (operator, inputs, output or outputs, attributes)."""

    nodes: list[tuple[str, str, str, dict[str, Any]]]
    inputs: dict[str, tuple[int, Shape]] = field(default_factory=lambda: {"x": (F, ["n", 4])})
    outputs: dict[str, tuple[int, Shape]] = field(default_factory=lambda: {"y": (F, ["n", None])})
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        nodes = []
        for op, read, made, attributes in self.nodes:
            domain, _, kind = op.rpartition(":")
            name = f"{kind}_{made}" if any(n.op_type == kind for n in nodes) else f"the_{kind}"
            nodes.append(
                helper.make_node(
                    kind,
                    read.split(),
                    made.split(),
                    name=name,
                    domain=domain,
                    **attributes,
                )
            )
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(n, *v) for n, v in self.inputs.items()],
            [helper.make_tensor_value_info(n, *v) for n, v in self.outputs.items()],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in self.constants.items()],
        )
        opsets = [
            helper.make_opsetid("", self.opset),
            helper.make_opsetid("ai.onnx.ml", 3),
            helper.make_opsetid("com.microsoft", 1),
        ]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


W = np.ones((4, 3), np.float32)
IMAGE: dict[str, tuple[int, Shape]] = {"x": (F, ["n", 3, 8, 8])}
TOKENS: dict[str, tuple[int, Shape]] = {"x": (F, ["n", "s", 4])}
IDS: dict[str, tuple[int, Shape]] = {"ids": (INTS, ["n", "s"])}


def one(op: str, given: str = "x", **attributes: Any) -> list[tuple[str, str, str, dict[str, Any]]]:
    return [(op, given, "y", attributes)]


# what is done to rows, and the graph
APART: dict[str, Graph] = {
    "product": Graph(one("MatMul", "x w"), constants={"w": W}),
    "gemm": Graph(one("Gemm", "x w b"), constants={"w": W, "b": W[0]}),
    "gemm, turned": Graph(one("Gemm", "x w", transB=1), constants={"w": W.T.copy()}),
    "constant beside": Graph(one("Add", "x b"), constants={"b": np.ones((1, 4), np.float32)}),
    "last axis reduced": Graph(one("ReduceMean", axes=[-1])),
    "other axes reduced": Graph(one("ReduceMean", axes=[1, 2, 3]), IMAGE),
    "softmax": Graph(one("Softmax", axis=-1)),
    "softmax of old": Graph(one("Softmax"), opset=11),
    "most likely": Graph(one("ArgMax", axis=1), outputs={"y": (INTS, ["n", None])}),
    "flattened": Graph(one("Flatten"), IMAGE),
    "reshaped, rest": Graph(one("Reshape", "x s"), IMAGE, constants={"s": np.array([0, -1])}),
    "reshaped, rows found": Graph(
        one("Reshape", "x s"), IMAGE, constants={"s": np.array([-1, 192])}
    ),
    "channels last": Graph(one("Transpose", perm=[0, 2, 3, 1]), IMAGE),
    "batch normalized": Graph(
        one("BatchNormalization", "x a a a a"), IMAGE, constants={"a": np.ones(3, np.float32)}
    ),
    "resized": Graph(
        one("Resize", "x  s".replace("  ", " none "), mode="nearest"),
        IMAGE,
        constants={"none": np.zeros(0, np.float32), "s": np.float32([1, 1, 2, 2])},
    ),
    "padded": Graph(one("Pad", "x p"), IMAGE, constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "first token": Graph(one("Gather", "x i", axis=1), TOKENS, constants={"i": np.array(0)}),
    "embedded": Graph(one("Gather", "w ids"), IDS, constants={"w": W}),
    "beside each other": Graph(one("Concat", "x x", axis=1)),
    "sorted in a row": Graph(
        [("TopK", "x k", "v i", {"axis": 1}), ("Relu", "v", "y", {})],
        constants={"k": np.array([2])},
    ),
    "summed up in a row": Graph(one("CumSum", "x a"), constants={"a": np.array(1)}),
    "cut in a row": Graph(
        one("Slice", "x b e a"),
        constants={"b": np.array([1]), "e": np.array([3]), "a": np.array([1])},
    ),
    "moved and back": Graph(
        [("Transpose", "x", "t", {"perm": [1, 0]}), ("Transpose", "t", "y", {"perm": [1, 0]})]
    ),
    "recurrent, moved": Graph(
        [
            ("Transpose", "x", "t", {"perm": [1, 0, 2]}),
            ("LSTM", "t w r", "h", {"hidden_size": 2}),
            ("Squeeze", "h one", "q", {}),
            ("Transpose", "q", "y", {"perm": [1, 0, 2]}),
        ],
        TOKENS,
        constants={
            "w": np.ones((1, 8, 4), np.float32),
            "r": np.ones((1, 8, 2), np.float32),
            "one": np.array([1]),
        },
    ),
    "rows merged with tokens, and back": Graph(
        [
            ("Reshape", "x flat", "f", {}),
            ("MatMul", "f w", "p", {}),
            ("Shape", "x", "sh", {}),
            ("Slice", "sh b e", "rows", {}),
            ("Concat", "rows three", "back", {"axis": 0}),
            ("Reshape", "p back", "y", {}),
        ],
        TOKENS,
        constants={
            "flat": np.array([-1, 4]),
            "w": W,
            "b": np.array([0]),
            "e": np.array([2]),
            "three": np.array([3]),
        },
    ),
    "einsum": Graph(one("Einsum", "x w", equation="bi,io->bo"), constants={"w": W}),
    "a mask as large as the batch": Graph(
        [
            ("Shape", "x", "sh", {}),
            ("ConstantOfShape", "sh", "zeros", {}),
            ("Add", "x zeros", "y", {}),
        ]
    ),
    "repeated for each row": Graph(
        [
            ("Shape", "x", "sh", {}),
            ("Expand", "b sh", "wide", {}),
            ("Mul", "x wide", "y", {}),
        ],
        constants={"b": np.float32([[1, 2, 3, 4]])},
    ),
    "static int8": Graph(
        [("QuantizeLinear", "x s z", "q", {}), ("DequantizeLinear", "q s z", "y", {})],
        constants={"s": np.float32(0.1), "z": np.uint8(3)},
    ),
    "trees": Graph(
        one(
            "ai.onnx.ml:TreeEnsembleRegressor",
            n_targets=1,
            nodes_treeids=[0],
            nodes_nodeids=[0],
            nodes_featureids=[0],
            nodes_modes=["LEAF"],
            nodes_values=[0.0],
            nodes_truenodeids=[0],
            nodes_falsenodeids=[0],
            target_ids=[0],
            target_nodeids=[0],
            target_treeids=[0],
            target_weights=[1.0],
        )
    ),
    "scaled": Graph(one("ai.onnx.ml:Scaler", offset=[0.0], scale=[2.0])),
    "two inputs": Graph(one("Add", "x z"), {"x": (F, ["n", 4]), "z": (F, ["n", 4])}),
    "unnamed axes": Graph(one("Relu"), {"x": (F, [None, 4])}, {"y": (F, [None, 4])}),
    "mixing that nothing comes of": Graph(
        [("ReduceMean", "x", "unused", {"axes": [0]}), ("Relu", "x", "y", {})]
    ),
}

# what is done to rows, the graph, and what is named
MIXED: dict[str, tuple[Graph, str]] = {
    "mean of the batch": (
        Graph([("ReduceMean", "x", "m", {"axes": [0]}), ("Sub", "x m", "y", {})]),
        "ReduceMean 'the_ReduceMean'",
    ),
    "mean of all": (
        Graph([("ReduceMean", "x", "m", {}), ("Sub", "x m", "y", {})]), "ReduceMean",
    ),
    "softmax of the batch": (Graph(one("Softmax", axis=0)), "Softmax"),
    "softmax of old, of all": (Graph(one("Softmax", axis=0), opset=11), "Softmax"),
    "detector": (
        Graph(one("Compress", "x m", axis=0), {"x": (F, ["n", 4]), "m": (TensorProto.BOOL, ["n"])},
              {"y": (F, ["found", 4])}),
        "Compress 'the_Compress'",
    ),
    "where not zero": (
        Graph(one("NonZero"), outputs={"y": (INTS, [2, "found"])}), "NonZero",
    ),
    "suppression": (
        Graph(
            one("NonMaxSuppression", "boxes scores"),
            {"boxes": (F, ["n", "k", 4]), "scores": (F, ["n", 2, "k"])},
            {"y": (INTS, ["found", 3])},
        ),
        "NonMaxSuppression",
    ),
    "turned": (Graph(one("Transpose", perm=[1, 0])), "output 'y'"),
    "all in one": (
        Graph(one("Reshape", "x s"), constants={"s": np.array([-1])}, outputs={"y": (F, [None])}),
        "output 'y'",
    ),
    "of fixed size": (
        Graph(one("Reshape", "x s"), constants={"s": np.array([2, -1])}), "Reshape",
    ),
    "rows behind tokens": (
        Graph(
            [("Transpose", "x", "t", {"perm": [1, 0, 2]}), ("Reshape", "t s", "y", {})],
            TOKENS, constants={"s": np.array([-1, 4])},
        ),
        "Reshape",
    ),
    "rows beneath each other": (Graph(one("Concat", "x x", axis=0)), "Concat"),
    "rows before a constant": (
        Graph(one("Concat", "b x", axis=0), constants={"b": np.zeros((1, 4), np.float32)}), "Concat",
    ),
    "first row": (
        Graph(one("Gather", "x i"), constants={"i": np.array([0])}), "Gather",
    ),
    "without the first row": (
        Graph(
            one("Slice", "x b e"),
            constants={"b": np.array([1]), "e": np.array([2**31])},
        ),
        "Slice",
    ),
    "the best of the batch": (
        Graph([("TopK", "x k", "y i", {"axis": 0})], constants={"k": np.array([1])}), "TopK",
    ),
    "running sums": (Graph(one("CumSum", "x a"), constants={"a": np.array(0)}), "CumSum"),
    "class of the batch": (Graph(one("ArgMax"), outputs={"y": (INTS, [1, 4])}), "ArgMax"),
    "training": (
        Graph(
            [("BatchNormalization", "x a a a a", "y m v", {"training_mode": 1})],
            IMAGE, constants={"a": np.ones(3, np.float32)},
        ),
        "BatchNormalization",
    ),
    "normalized by default axes": (Graph(one("MeanVarianceNormalization"), IMAGE), "MeanVariance"),
    "resized": (
        Graph(one("Resize", "x none s"), IMAGE,
              constants={"none": np.zeros(0, np.float32), "s": np.float32([2, 1, 1, 1])}),
        "Resize",
    ),
    "resized by the number of rows": (
        Graph(
            [
                ("Shape", "x", "sh", {}),
                ("Gather", "sh i", "sizes", {}),
                ("Resize", "x none none sizes", "y", {"mode": "nearest"}),
            ],
            IMAGE,
            constants={"i": np.array([0, 1, 0, 3]), "none": np.zeros(0, np.float32)},
        ),
        "Resize",
    ),
    "padded": (
        Graph(one("Pad", "x p"), constants={"p": np.array([1, 0, 0, 0])}), "Pad",
    ),
    "each with each": (
        Graph([("Transpose", "x", "t", {"perm": [1, 0]}), ("MatMul", "x t", "y", {})]), "MatMul",
    ),
    "contracted": (
        Graph([("Transpose", "x", "t", {"perm": [1, 0]}), ("MatMul", "t x", "y", {})]), "MatMul",
    ),
    "einsum over rows": (Graph(one("Einsum", "x x", equation="bi,bj->ij")), "Einsum"),
    "scale of the batch": (
        Graph(
            [("DynamicQuantizeLinear", "x", "q s z", {}), ("DequantizeLinear", "q s z", "y", {})]
        ),
        "DynamicQuantizeLinear",
    ),
    "recurrent along the batch": (
        Graph(
            [("LSTM", "x w r", "h", {"hidden_size": 2}), ("Squeeze", "h one", "y", {})],
            TOKENS,
            constants={"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32),
                       "one": np.array([1])},
        ),
        "LSTM",
    ),
    "divided by the number of rows": (
        Graph(
            [
                ("Shape", "x", "sh", {}),
                ("Gather", "sh first", "rows", {}),
                ("Cast", "rows", "number", {"to": F}),
                ("Div", "x number", "y", {}),
            ],
            constants={"first": np.array(0)},
        ),
        "Div",
    ),
    "by position in the batch": (
        Graph(
            [
                ("Shape", "x", "sh", {}),
                ("Gather", "sh first", "rows", {}),
                ("Range", "zero rows one", "places", {}),
                ("Cast", "places", "float", {"to": F}),
                ("Unsqueeze", "float axis", "column", {}),
                ("Add", "x column", "y", {}),
            ],
            constants={k: np.array(v) for k, v in
                       {"first": 0, "zero": 0, "one": 1, "axis": [1]}.items()},
        ),
        "Add",
    ),
    "a constant for each of four rows": (
        Graph(one("Add", "x b"), constants={"b": np.ones((4, 4), np.float32)}), "Add",
    ),
    "at random": (Graph([("RandomNormalLike", "x", "r", {}), ("Add", "x r", "y", {})]), "Random"),
    "dropped rows": (
        Graph(one("Squeeze"), outputs={"y": (F, None)}), "Squeeze",  # type: ignore[dict-item]
    ),
    "indices from another row": (
        Graph(
            [("Gather", "x i", "y", {})],
            {"x": (F, ["n", 4]), "i": (INTS, ["n"])},
        ),
        "Gather",
    ),
    "a branch": (
        Graph(
            [
                ("ReduceMax", "x", "most", {"keepdims": 0}),
                ("Greater", "most zero", "large", {}),
                ("Relu", "x", "y", {}),
                ("Where", "large x y", "z", {}),
            ],
            outputs={"z": (F, ["n", 4])}, constants={"zero": np.float32(5)},
        ),
        "ReduceMax",
    ),
    "an operator that nobody knows": (Graph(one("com.microsoft:Inverse")), "Inverse"),
    "a constant answer": (
        Graph(one("Relu", "b"), constants={"b": W}), "output 'y'",
    ),
    "an input of fixed size": (
        Graph(one("Add", "x z"), {"x": (F, ["n", 4]), "z": (F, [1, 4])}), "input 'z'",
    ),
    "a scalar input": (
        Graph(one("Mul", "x z"), {"x": (F, ["n", 4]), "z": (F, [])}), "input 'z'",
    ),
    "two first axes": (
        Graph(one("Add", "x z"), {"x": (F, ["n", 4]), "z": (F, ["m", 4])}), "may differ",
    ),
    "square": (Graph(one("Relu"), {"x": (F, ["n", "n"])}), "another axis"),
}  # fmt: skip


@pytest.mark.parametrize("what", APART)
def test_rows_stay_apart(what: str) -> None:
    found = rows_of_graph(APART[what].model())
    assert found.known, found.reason


@pytest.mark.parametrize("what", MIXED)
def test_what_mixes_rows_is_named(what: str) -> None:
    graph, named = MIXED[what]
    found = rows_of_graph(graph.model())
    assert not found.known
    assert named in found.reason


@pytest.mark.parametrize(
    "model", [small_cnn(), bottlenecks(), perceptron(), attention()], ids=lambda m: m.graph.name
)
def test_networks_keep_their_batches(model: onnx.ModelProto) -> None:
    assert rows_of_graph(model).known


def test_a_text_model_with_computed_shapes_keeps_its_batches() -> None:
    """The structure that exporters make of BERT: masks by Expand and Where, heads by Shape and Concat."""
    nodes = [
        ("Gather", "table ids", "words", {}),
        ("Shape", "ids", "sh", {}),
        ("Gather", "sh i0", "rows", {}),
        ("Gather", "sh i1", "length", {}),
        ("Unsqueeze", "length a0", "length1", {}),
        ("Unsqueeze", "rows a0", "rows1", {}),
        ("Slice", "positions a0 length1 a1", "own", {}),
        ("Gather", "table own", "places", {}),
        ("Add", "words places", "sum", {}),
        ("LayerNormalization", "sum scale shift", "h", {"axis": -1}),
        # the mask
        ("Concat", "rows1 one length1 length1", "wide", {"axis": 0}),
        ("Unsqueeze", "mask a12", "mask4", {}),
        ("ConstantOfShape", "four", "ones", {"value": helper.make_tensor("v", INTS, [1], [1])}),
        ("Mul", "ones minus", "negative", {}),
        ("Equal", "wide negative", "same", {}),
        ("Where", "same ones wide", "shape", {}),
        ("Expand", "mask4 shape", "mask5", {}),
        ("Cast", "mask5", "mask6", {"to": F}),
        ("Sub", "onef mask6", "off", {}),
        ("Mul", "off big", "bias", {}),
        # attention
        ("MatMul", "h w", "q", {}),
        ("Concat", "rows1 length1 heads depth", "split", {"axis": 0}),
        ("Reshape", "q split", "q4", {}),
        ("Transpose", "q4", "qt", {"perm": [0, 2, 1, 3]}),
        ("Transpose", "q4", "kt", {"perm": [0, 2, 3, 1]}),
        ("MatMul", "qt kt", "scores", {}),
        ("Add", "scores bias", "masked", {}),
        ("Softmax", "masked", "weights", {"axis": -1}),
        ("MatMul", "weights qt", "mixed", {}),
        ("Transpose", "mixed", "back", {"perm": [0, 2, 1, 3]}),
        ("Concat", "rows1 length1 all", "joined", {"axis": 0}),
        ("Reshape", "back joined", "states", {}),
        ("Gather", "states i0", "y", {"axis": 1}),
    ]
    ints = {
        "i0": 0, "i1": 1, "a0": [0], "a1": [1], "a12": [1, 2], "one": [1], "four": [4], "minus": -1,
        "heads": [2], "depth": [4], "all": [8],
    }  # fmt: skip
    random = np.random.default_rng(0)
    floats = {
        "table": random.normal(size=(10, 8)), "scale": np.ones(8), "shift": np.zeros(8), "onef": 1.0,
        "big": -1e4, "w": random.normal(size=(8, 8)),
    }  # fmt: skip
    constants: dict[str, Any] = {n: np.array(v, np.int64) for n, v in ints.items()}
    constants |= {n: np.asarray(v, np.float32) for n, v in floats.items()}
    constants["positions"] = np.arange(10)[None] % 10
    inputs: dict[str, tuple[int, Shape]] = {"ids": (INTS, ["n", "s"]), "mask": (INTS, ["n", "s"])}
    model = Graph(nodes, inputs, {"y": (F, ["n", 8])}, constants).model()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = random.integers(0, 10, (3, 5))
    together = session.run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]
    alone = session.run(None, {"ids": ids[1:2], "mask": np.ones_like(ids[:1])})[0]
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)
    found = rows_of_graph(model)
    assert found.known, found.reason


@pytest.mark.parametrize(("axis", "known"), [(1, True), (0, False)])
def test_local_functions_are_looked_into(axis: int, known: bool) -> None:
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=axis, name="inside")]
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("own", "Spread", ["a"], ["b"], body, [opset])
    model = Graph(one("own:Spread")).model()
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    found = rows_of_graph(model)
    assert found.known is known
    assert known or "Softmax" in found.reason


STEPS = {
    "Relu": ({}, ""),
    "Tanh": ({}, ""),
    "Softmax": ({"axis": -1}, ""),
    "Add": ({}, " b"),
    "Mul": ({}, " b"),
    "MatMul": ({}, " square"),
    "LayerNormalization": ({"axis": -1}, " b b"),
}
MIXING = {"Softmax": {"axis": 0}, "CumSum": {}, "ReduceSum": {}, "TopK": {"axis": 0}}


def chained(steps: Sequence[str], mixing: tuple[int, str] | None = None) -> Graph:
    nodes: list[tuple[str, str, str, dict[str, Any]]] = []
    for index, step in enumerate(steps):
        attributes, more = STEPS[step]
        nodes.append((step, f"h{index}{more}", f"h{index + 1}", attributes))
    if mixing is not None:
        place, kind = mixing
        name = {"CumSum": " zero", "ReduceSum": " zeros", "TopK": " ones"}.get(kind, "")
        made = f"m{place}" + (" places" if kind == "TopK" else "")
        nodes.insert(place, (kind, f"h{place}{name}", made, MIXING[kind]))
        op, read, out, attributes = nodes[place + 1]
        nodes[place + 1] = op, read.replace(f"h{place}", f"m{place}"), out, attributes
    nodes.append(("Identity", f"h{len(steps)}", "y", {}))
    square = np.eye(4, dtype=np.float32)
    constants = {"b": np.ones(4, np.float32), "square": square, "zero": np.array(0)}
    constants |= {"zeros": np.array([0]), "ones": np.array([1])}
    return Graph(nodes, {"h0": (F, ["n", 4])}, {"y": (F, ["n", 4])}, constants)


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=12))
@settings(deadline=None)
def test_random_rowwise_graphs_keep_rows_apart(steps: list[str]) -> None:
    found = rows_of_graph(chained(steps).model())
    assert found.known, found.reason


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_one_mixing_operator_anywhere_is_found_and_named(
    steps: list[str], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(steps) - 1))
    kind = data.draw(st.sampled_from(sorted(MIXING)))
    found = rows_of_graph(chained(steps, (place, kind)).model())
    assert not found.known
    assert kind in found.reason


# Refused for what may be, or for what comes out.
OTHERS = ("an operator that nobody knows", "a constant answer", "square", "turned")


@pytest.mark.parametrize(
    "what", [w for w, (g, _) in MIXED.items() if set(g.inputs) == {"x"} and w not in OTHERS]
)
def test_what_is_refused_is_not_refused_for_nothing(what: str) -> None:
    """Most of the refused graphs do give rows other answers in other company: the table is not made up."""
    graph = MIXED[what][0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(graph.model().SerializeToString(), options)
    except Exception as error:
        pytest.skip(f"onnxruntime does not open it: {error}"[:80])
    shape = [{"n": 1, "s": 3}.get(d, d) for d in graph.inputs["x"][1]]
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    alone = np.asarray(session.run(None, {"x": a})[0])
    try:
        before = np.asarray(session.run(None, {"x": np.concatenate([a, 50 * b])})[0])
        behind = np.asarray(session.run(None, {"x": np.concatenate([50 * b, a])})[0])
    except Exception:  # it takes one row only
        return
    same = len(before) == 2 and len(alone) == 1
    assert not (same and np.allclose(before[:1], alone) and np.allclose(behind[1:], alone))
