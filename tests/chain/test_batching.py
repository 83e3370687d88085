"""Which opened candidates may share batches: tried beside hostile neighbours, or as the manifest has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Batching, Bundle, Fidelity, Manifest, Measured
from edgeserve.bundle.manifest import MANIFEST_NAME, encode
from edgeserve.chain import Chain, ChainOptions, this_machine
from edgeserve.chain.batching import row_error
from edgeserve.runtimes import engine_version, runtime
from edgeserve.tensors import Interface, Tensors, TensorSpec
from tests.bundles import linear_bundle, write_bundle

FLOAT = TensorProto.FLOAT
Nodes = list[tuple[str, str, str, dict[str, Any]]]
QUANTIZED: Nodes = [
    ("DynamicQuantizeLinear", "x", "q s z", {}),
    ("DequantizeLinear", "q s z", "d", {}),
    ("MatMul", "d w", "y", {}),
]
CONSTANTS = {
    "w": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4),
    "b": np.ones(4, np.float32),
    "zero": np.float32(0),
    "one": np.int64([1]),
    "most": np.int64([4]),
    "axis": np.int64(0),
}


def bundle_of(
    folder: Path, nodes: Nodes, out: tuple[str, ...] = ("n", "k"), samples: int = 3, **more: Any
) -> Bundle:
    """x FP32[n,4] to y FP32[out], with `max_batch` 8 and nothing recorded."""
    graph = helper.make_graph(
        [helper.make_node(op, i.split(), o.split(), **a) for op, i, o, a in nodes],
        "made",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, list(out))],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.abs(np.random.default_rng(1).normal(size=(samples, 4))).astype(np.float32)
    y = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    interface = Interface(
        (TensorSpec("x", "FP32", ("n", 4)),), (TensorSpec("y", "FP32", out),), max_batch=8
    )
    return Bundle.open(write_bundle(folder, "made", model, interface, {"x": x}, {"y": y}, **more))


def batching(bundle: Bundle, **options: Any) -> Batching:
    with Chain(bundle, ChainOptions(**options)) as chain:
        return chain.batching


def rewritten(bundle: Bundle, manifest: Manifest) -> Bundle:
    (bundle.path / MANIFEST_NAME).write_bytes(encode(manifest))
    return Bundle.open(bundle.path)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([("ReduceMean", "x", "m", {"axes": [0]}), ("Sub", "x m", "y", {})], "rows interact"),
        ([("Softmax", "x", "y", {"axis": 0})], "rows interact"),
        ([("CumSum", "x axis", "y", {})], "rows interact"),
        (QUANTIZED, "rows interact"),
        (
            [
                ("Slice", "x axis1 one one", "first", {}),
                ("Squeeze", "first one", "score", {}),
                ("Greater", "score zero", "found", {}),
                ("Compress", "x found", "y", {"axis": 0}),
            ],
            "'y' has 0 rows where there were 1",
        ),
        (
            [  # as many columns as the largest number of the batch says
                ("ReduceMax", "x", "largest", {"keepdims": 0}),
                ("Cast", "largest", "number", {"to": TensorProto.INT64}),
                ("Unsqueeze", "number axis1", "numbers", {}),
                ("Max", "numbers one", "some", {}),
                ("Min", "some most", "k", {}),
                ("TopK", "x k", "y places", {}),
            ],
            "rows interact",
        ),
    ],
    ids=["mean", "softmax", "sums", "dynamic int8", "detector", "padded detector"],
)
def test_rows_that_interact_are_run_one_at_a_time(
    tmp_path: Path, nodes: Nodes, named: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONSTANTS, "axis1", np.int64([0]))
    found = batching(bundle_of(tmp_path, nodes, samples=samples))
    assert found.max_batch == 1
    assert named in found.reason


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "x w", "y", {})],
        [("Exp", "x", "y", {})],  # overflows for large neighbours
        [("Sqrt", "x", "y", {})],  # is NaN for negative ones
        [("Softmax", "x", "y", {"axis": 1})],
        [("LayerNormalization", "x b b", "y", {})],
    ],
    ids=["product", "overflow", "nan", "softmax", "normalization"],
)
def test_rows_that_do_not_keep_their_batches(tmp_path: Path, nodes: Nodes, samples: int) -> None:
    found = batching(bundle_of(tmp_path, nodes, samples=samples))
    assert found == Batching(8, "an answer is the same beside hostile neighbours")


def test_batches_asked_for_do_not_make_rows_share_them(tmp_path: Path) -> None:
    """The model adds the mean over its batch."""
    nodes: Nodes = [("ReduceMean", "x", "m", {"axes": [0]}), ("Add", "x m", "y", {})]
    assert batching(bundle_of(tmp_path, nodes), batches=(2, 4)).max_batch == 1


def test_an_output_with_another_first_axis_has_no_rows(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [("Relu", "x", "y", {})], out=("found", "k"))
    assert "first axes differ: 'x' has [n], 'y' has [found]" in batching(bundle).reason


def measured(bundle: Bundle, found: Batching | None, **other: Any) -> Bundle:
    """The bundle as `convert` would have written it on this machine, but for `other`."""
    record = Measured(
        runtime="onnxruntime",
        runtime_version=engine_version(runtime("onnxruntime")) or "",
        device="cpu",
        machine=this_machine(),
        fidelity=Fidelity(1, 200.0, 1.0, 0.0),
        latency_ms=1.0,
        speedup=1.0,
        inference_precision="fp32",
        int8_compute_ops=0,
        compute_ops=1,
        batching=found,
    )
    (variant,) = bundle.manifest.variants
    record = msgspec.structs.replace(record, **other)
    variant = msgspec.structs.replace(variant, measured=(record,))
    graph = Batching(64, "the graph keeps rows apart")
    manifest = msgspec.structs.replace(bundle.manifest, variants=(variant,), batching=graph)
    return rewritten(bundle, manifest)


@pytest.mark.parametrize(
    ("other", "most"),
    [
        ({}, 3),
        ({"runtime_version": "1.0"}, 64),
        ({"machine": "another CPU"}, 64),
        ({"device": "gpu"}, 64),
        ({"batching": None}, 64),
    ],
    ids=["this engine", "another engine", "another CPU", "another device", "not recorded"],
)
def test_what_was_recorded_of_another_engine_is_tried_anew(
    tmp_path: Path, other: dict[str, Any], most: int
) -> None:
    found = Batching(3, "recorded")
    bundle = measured(Bundle.open(linear_bundle(tmp_path)), found, **other)
    assert batching(bundle).max_batch == most


def test_a_variant_whose_graph_mixes_rows_is_not_tried(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    (variant,) = bundle.manifest.variants
    variant = msgspec.structs.replace(variant, batching=Batching(1, "rows interact (Some 'node')"))
    bundle = rewritten(bundle, msgspec.structs.replace(bundle.manifest, variants=(variant,)))
    assert batching(bundle) == Batching(1, "rows interact (Some 'node')")


def test_rows_of_one_request_are_run_apart_where_only_the_variant_mixes_them(
    tmp_path: Path,
) -> None:
    """The source keeps rows apart: its int8 variant, which does not, was proven on single rows."""
    bundle = bundle_of(tmp_path, QUANTIZED)
    graph = Batching(8, "the graph keeps rows apart")
    x = np.float32([[0.1, 0.2, 0.3, 0.4], [1000, 2000, -3000, 4000]])

    def answers(made: Bundle) -> tuple[Tensors, Tensors]:
        with Chain(made) as chain:
            return chain.run({"x": x[:1]})[0], chain.run({"x": x})[0]

    alone, both = answers(bundle)
    assert not np.allclose(both["y"][:1], alone["y"], rtol=0.1)  # nothing is known of the source
    known = msgspec.structs.replace(bundle.manifest, batching=graph)
    alone, both = answers(rewritten(bundle, known))
    np.testing.assert_array_equal(both["y"][:1], alone["y"])


def test_batches_of_large_rows_hold_as_many_as_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.8 MB a row, in and out: seven of them are just below 6.4 MB."""
    monkeypatch.setattr("edgeserve.chain.batching._BATCH_BYTES", 6_400_000)
    monkeypatch.setitem(CONSTANTS, "many", np.int64([1, 50_000]))
    found = batching(bundle_of(tmp_path, [("Tile", "x many", "y", {})], samples=1))
    assert found.max_batch == 7
    assert "were not tried" in found.reason


def test_integers_of_neighbours_are_among_those_seen(tmp_path: Path) -> None:
    """They index a table: an index out of range would fail."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "made",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "s"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", "s", 2])],
        [numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ids = np.int64([[0, 3, 2], [1, 1, 0]])
    interface = Interface(
        (TensorSpec("ids", "INT64", ("n", "s")),), (TensorSpec("y", "FP32", ("n", "s", 2)),), 8
    )
    y = np.arange(8, dtype=np.float32).reshape(4, 2)[ids]
    bundle = Bundle.open(write_bundle(tmp_path, "made", model, interface, {"ids": ids}, {"y": y}))
    assert batching(bundle).max_batch == 8


@given(hnp.arrays(np.float32, (1, 6), elements=st.floats(-1e3, 1e3, width=32)))
def test_an_answer_is_no_way_from_itself(answer: np.ndarray) -> None:
    assert row_error(answer, answer.copy()) == 0.0


@pytest.mark.parametrize(
    ("alone", "got", "least", "most"),
    [
        ([[1.0, 1.0]], [[1.1, 1.1]], 0.099, 0.101),
        ([[300.0, 0.5]], [[300.0, 0.0]], 0.1, 1.0),  # a score beside a coordinate
        ([[0.0, 0.0]], [[0.0, 1e-6]], np.inf, np.inf),
        ([[1.0, np.nan]], [[1.0, np.nan]], 0.0, 0.0),
        ([[1.0, np.nan]], [[1.0, 1.0]], np.inf, np.inf),
        ([[1.0]], [[1.0], [1.0]], np.inf, np.inf),
    ],
)
def test_how_far_an_answer_is_from_what_it_is_alone(
    alone: list[list[float]], got: list[list[float]], least: float, most: float
) -> None:
    assert least <= row_error(np.float32(alone), np.float32(got)) <= most


@pytest.mark.parametrize(
    ("dtype", "step", "same"), [(np.int64, 1, False), (np.uint8, 1, True), (np.uint8, 2, False)]
)
def test_integers_are_equal_but_for_a_rounding_of_bytes(dtype: type, step: int, same: bool) -> None:
    alone = np.array([[7, 9]], dtype)
    assert (row_error(alone, alone + dtype(step)) == 0.0) is same
