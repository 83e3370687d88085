"""Without data: random samples that look like inputs, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Bundle


def tokens(folder: Path, *, only: int | None) -> Path:
    """A model over ids [batch, sequence] and their mask; with `only`, it works for that length alone."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], name="embed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        helper.make_node("Mul", ["embedded", "wide"], ["masked"], name="hide"),
        helper.make_node("Add", ["masked", "offset"], ["y"], name="add"),
    ]
    table = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    offset = np.ones((1, only, 8) if only else (8,), np.float32)
    graph = helper.make_graph(
        nodes,
        "tokens",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 8])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(offset, "offset"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("only", "length"), [(None, 64), (8, 1)])
def test_open_dimensions_are_as_long_as_the_model_can_take(
    tmp_path: Path, onnxruntime_target: str, only: int | None, length: int
) -> None:
    report = edgeserve.convert(
        tokens(tmp_path, only=only), tmp_path / "t.edge", target=onnxruntime_target
    )
    inputs, _ = Bundle.open(tmp_path / "t.edge").golden()
    assert inputs["ids"].shape[-1] == length
    masks = inputs["attention_mask"].reshape(-1, length)
    assert masks[0].all()
    assert masks[:, 0].all()
    assert masks.all() == (length == 1)
    assert inputs["ids"].max() > 1
    assert any(
        "static int8 was not tried, fidelity is on random inputs" in r for r in report.remarks
    )
    assert any("input 'ids' INT64: random values 0 to 9" in r for r in report.remarks)
