"""Random inputs span what the graph says of each input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.options import Options
from edgeserve.conversion.sources.first_run import first_run
from edgeserve.conversion.sources.onnx import open_reference, read_onnx
from edgeserve.conversion.sources.plausible import plausible_spans
from edgeserve.errors import DataError, UnsupportedModel
from edgeserve.evaluate.made_up import Span, made_up_samples
from edgeserve.tensors import Array
from tests.conversion.tiny import (
    BOOL,
    I32,
    I64,
    F,
    calendar,
    looping,
    model,
    node,
    noise,
    saved,
    target,
    value,
)  # fmt: skip


def drawn(made: onnx.ModelProto, folder: Path, count: int = 64, size: int = 16) -> dict[str, Array]:
    """All random values of each input, and that the model runs on every sample of them."""
    source = read_onnx(saved(made, folder))
    spans = plausible_spans(source.proto, source.interface, size)
    samples = made_up_samples(source.interface, count, spans, open_size=size)
    session = open_reference(source, source.path)
    for sample in samples:
        session.run(sample)
    session.close()
    names = [s.name for s in source.interface.inputs]
    return {n: np.concatenate([s[n].reshape(-1) for s in samples]) for n in names}


def embedding() -> onnx.ModelProto:
    return model(
        [
            node("Add", "ids two", "moved"),
            node("Gather", "table moved", "e"),
            node("Gather", "kinds segments", "k"),
            node("Gather", "places position_ids", "p"),
            node("Add", "e k", "ek"),
            node("Add", "ek p", "y"),
        ],
        [value(n, I64, "batch", "seq") for n in ("ids", "segments", "position_ids")],
        [value("y", F, "batch", "seq", 4)],
        {"two": np.array(2), "table": noise(300, 4), "kinds": noise(2, 4), "places": noise(64, 4)},
    )


def test_indices_span_their_tables_and_no_more(tmp_path: Path) -> None:
    found = drawn(embedding(), tmp_path)
    assert (found["ids"].min(), found["ids"].max()) == (-2, 297)  # two is added before the lookup
    assert set(found["segments"]) == {0, 1}
    assert np.array_equal(found["position_ids"][:16], np.arange(16))


def test_times_go_beyond_int32(tmp_path: Path) -> None:
    found = drawn(calendar(), tmp_path, count=200)["ts"]
    assert found.min() >= 0
    assert found.max() > 1_700_000_000_000
    assert np.mean(found > 2**31) > 0.3
    assert np.any(found < 2**31)


def test_what_is_compared_is_near_the_constant(tmp_path: Path) -> None:
    made = model(
        [node("Equal", "state seven", "is"), node("Cast", "is", "y", to=F)],
        [value("state", I64, "batch", 3)], [value("y", F, "batch", 3)],
        {"seven": np.array(7)},
    )  # fmt: skip
    found = drawn(made, tmp_path)["state"]
    assert {6, 7, 8} <= set(found.tolist())


def test_masks_have_padding_at_the_end_and_none_in_the_first_sample(tmp_path: Path) -> None:
    made = model(
        [node("Cast", "attention_mask", "m", to=F), node("Mul", "x m", "y")],
        [value("x", F, "batch", "seq"), value("attention_mask", I64, "batch", "seq")],
        [value("y", F, "batch", "seq")],
    )
    masks = drawn(made, tmp_path)["attention_mask"].reshape(-1, 16)
    assert masks[0].all()
    assert masks[:, 0].all()
    assert not masks.all()
    assert np.all(np.diff(masks, axis=1) <= 0)


REMARKABLE: dict[str, tuple[Callable[[], onnx.ModelProto], str, Callable[[Array], bool]]] = {
    "uint8-images": (
        lambda: model(
            [node("Cast", "x", "y", to=F)],
            [value("x", TensorProto.UINT8, "batch", 8, 8, 3)], [value("y", F, "batch", 8, 8, 3)],
        ),
        "x", lambda a: a.min() == 0 and a.max() == 255,
    ),
    "bool": (
        lambda: model(
            [node("Where", "c x z", "y")],
            [value("c", BOOL, "batch", 4), value("x", F, "batch", 4)], [value("y", F, "batch", 4)],
            {"z": np.float32(0)},
        ),
        "c", lambda a: set(a.tolist()) == {True, False},
    ),
    "images-normalized-inside": (
        lambda: model(
            [node("Sub", "x mean", "c"), node("Div", "c std", "y")],
            [value("x", F, "batch", 3, 8, 8)], [value("y", F, "batch", 3, 8, 8)],
            {"mean": np.float32([123, 117, 104]).reshape(1, 3, 1, 1), "std": np.float32(58)},
        ),
        "x", lambda a: abs(a.mean() - 115) < 5 and abs(a.std() - 58) < 5,
    ),
    "logarithm": (
        lambda: model([node("Log", "x", "y")], [value("x", F, "batch", 4)],
                      [value("y", F, "batch", 4)]),
        "x", lambda a: a.min() > 0,
    ),
    "divisor": (
        lambda: model([node("Div", "x n", "y")], [value("x", I64, "batch", 4), value("n", I64, 1)],
                      [value("y", I64, "batch", 4)]),
        "n", lambda a: 0 not in a,
    ),
    "reshape": (
        lambda: model([node("Reshape", "x s", "y")], [value("x", F, 4, 6), value("s", I64, 2)],
                      [value("y", F, "a", "b")]),
        "s", lambda a: set(a.reshape(-1, 2).prod(axis=1)) == {24} and len(set(a)) > 3,
    ),
    "reshape-to-a-fixed-side": (
        lambda: model([node("Reshape", "x s", "y")], [value("x", F, 4, 6), value("s", I64, 3)],
                      [value("y", F, 3, "b", "c")]),
        "s", lambda a: set(a.reshape(-1, 3)[:, 0]) == {3},
    ),
    "expand": (
        lambda: model([node("Expand", "x s", "y")], [value("x", F, 1, 6), value("s", I64, 3)],
                      [value("y", F, "a", "b", 6)]),
        "s", lambda a: set(a.reshape(-1, 3)[:, 2]) == {6},
    ),
    "split": (
        lambda: model([node("Split", "x s", "y z", axis=1)],
                      [value("x", F, 2, 9), value("s", I64, 2)],
                      [value("y", F, 2, "a"), value("z", F, 2, "b")]),
        "s", lambda a: set(a.reshape(-1, 2).sum(axis=1)) == {9},
    ),
    "top-k": (
        lambda: model([node("TopK", "x k", "y i")], [value("x", F, 2, 9), value("k", I64, 1)],
                      [value("y", F, 2, "k"), value("i", I64, 2, "k")]),
        "k", lambda a: a.min() >= 1 and a.max() == 9,
    ),
    "resize": (
        lambda: model([node("Resize", "x _ _ s", "y", mode="nearest")],
                      [value("x", F, 1, 3, 8, 8), value("s", I64, 4)],
                      [value("y", F, 1, 3, "h", "w")]),
        "s", lambda a: set(a.reshape(-1, 4)[:, 1]) == {3} and a.max() == 16,
    ),
    "loop": (looping, "n", lambda a: a.min() >= 1 and a.max() <= 4),
    "while": (
        lambda: model(
            [node("Less", "zero n", "any"), node("Loop", "_ any zero", "y", body=helper.make_graph(
                [node("Add", "v one", "w"), node("Less", "w n", "go")], "body",
                [value("i", I64), value("c", BOOL), value("v", I64)],
                [value("go", BOOL), value("w", I64)]))],
            [value("n", I64)], [value("y", I64)],
            {"zero": np.array(0), "one": np.array(1)},
        ),
        "n", lambda a: a.max() <= 4,
    ),
    "size-by-arithmetic": (
        lambda: model(
            [node("Mul", "n two", "m"), node("Concat", "m three", "s", axis=0),
             node("ConstantOfShape", "s", "y")],
            [value("n", I64, 1)], [value("y", F, "a", 3)],
            {"two": np.array([2]), "three": np.array([3])},
        ),
        "n", lambda a: a.min() >= 1 and a.max() <= 4,
    ),
    "lengths": (
        lambda: model(
            [node("LSTM", "x w r _ lengths", "y", hidden_size=2)],
            [value("x", F, "time", 1, 3), value("lengths", I32, 1)],
            [value("y", F, "time", 1, 1, 2)],
            {"w": noise(1, 8, 3), "r": noise(1, 8, 2)},
        ),
        "lengths", lambda a: a.min() >= 1,
    ),
    "trees": (
        lambda: model(
            [helper.make_node(
                "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
                nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0],
                nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[451.5, 0.0, 0.0],
                nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
                target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
                target_weights=[1.0, 2.0])],
            [value("x", F, "batch", 2)], [value("y", F, "batch", 1)], ml=2,
        ),
        "x", lambda a: np.any(a[1::2] < 451) and np.any(a[1::2] > 452),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMARKABLE)
def test_values_fit_what_reads_them(tmp_path: Path, name: str) -> None:
    build, of, holds = REMARKABLE[name]
    found = drawn(build(), tmp_path)[of]
    assert holds(found), found


def test_integers_that_nothing_limits_are_smaller_where_the_model_fails(tmp_path: Path) -> None:
    # The table's size is not known before the model runs: the ids are tried, largest first.
    made = model(
        [node("NonZero", "x", "nz"), node("Transpose", "nz", "t"), node("Gather", "t ids", "y")],
        [value("x", F, 40), value("ids", I64, 2)], [value("y", I64, 2, 1)],
    )  # fmt: skip
    source = read_onnx(saved(made, tmp_path))
    run = first_run(source, Options(), lambda level: open_reference(source, source.path))
    assert any("'ids' INT64" in r and "fails on larger" in r for r in run.data.remarks)
    assert max(int(s["ids"].max()) for s in run.data.proof) == 16


def test_random_inputs_that_do_not_fit_are_not_the_models_fault(tmp_path: Path) -> None:
    # An odd number of elements, and a shape that is doubled.
    made = model(
        [node("Cast", "s", "shape", to=I64), node("Mul", "shape two", "even"),
         node("Reshape", "x even", "y")],
        [value("x", F, 3, 5), value("s", I32, 2)], [value("y", F, "a", "b")],
        {"two": np.array(2)},
    )  # fmt: skip
    with pytest.raises(DataError, match="edgeserve's random inputs do not fit") as caught:
        edgeserve.convert(
            saved(made, tmp_path), tmp_path / "m.edge", target=target(tmp_path, "onnxruntime")
        )
    assert caught.value.exit_code == 2
    assert "--calibrate" in (caught.value.hint or "")


def test_a_fusion_that_breaks_the_model_is_left_out_of_what_serves(tmp_path: Path) -> None:
    # onnx/onnx#8203: onnxruntime's SimplifiedLayerNormFusion takes a scale of another size for its own.
    made = model(
        [
            node("Pow", "x two", "p"),
            node("ReduceMean", "p", "m", axes=[-1], keepdims=1),
            node("Add", "m eps", "e"),
            node("Sqrt", "e", "s"),
            node("Div", "x s", "d"),
            node("Mul", "d scale", "y"),
        ],
        [value("x", F, "batch", 1)],
        [value("y", F, "batch", 2)],
        {"two": np.float32(2), "eps": np.float32(1e-5), "scale": np.float32([1.5, -2.0])},
    )
    report = edgeserve.convert(
        saved(made, tmp_path), tmp_path / "m.edge", target=target(tmp_path, "onnxruntime")
    )
    (candidate,) = Bundle.open(tmp_path / "m.edge").manifest.chain
    assert candidate.options["graph_optimization_level"] == "basic"
    assert any("optimizations break this model" in r for r in report.remarks)
    with edgeserve.load(tmp_path / "m.edge") as loaded:
        y = loaded.run({"x": np.float32([[3.0]])})["y"]
    assert np.allclose(y, [[1.5, -2.0]], atol=1e-3)


def test_a_model_that_answers_differently_each_time_is_refused(tmp_path: Path) -> None:
    made = model(
        [node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")],
        [value("x", F, "batch", 4)], [value("y", F, "batch", 4)],
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="answers differently each time") as caught:
        edgeserve.convert(
            saved(made, tmp_path), tmp_path / "m.edge", target=target(tmp_path, "onnxruntime")
        )
    assert "RandomNormalLike" in (caught.value.cause or "")


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span("uniform", 0, 297), "random values 0 to 297"),
        (Span("mask"), "ones, with padding at the end"),
        (Span("table", values=(np.array([4, 6]),)), "such as [4, 6]"),
    ],
)
def test_spans_say_what_they_are(span: Span, text: str) -> None:
    assert span.describe() == text
