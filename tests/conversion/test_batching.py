"""What convert says of batches: by the source's graph, by each variant's own, and beside hostile neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeserve import convert
from edgeserve.bundle import Batching, Bundle, Manifest
from edgeserve.chain import Chain
from edgeserve.tensors import Tensors
from tests.bundles import linear, linear_model
from tests.networks import perceptron

APART = Batching(32, "the graph keeps rows apart")
SAME = Batching(32, "an answer is the same beside hostile neighbours")
DYNAMIC = "its scale is taken over all rows"


def converted(
    model: onnx.ModelProto, folder: Path, samples: Tensors, **options: object
) -> Manifest:
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", **samples)
    convert(
        folder / "model.onnx", folder / "model.edge", calibrate=folder / "samples.npz",
        target="cpu-x86", tool_env=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return Bundle.open(folder / "model.edge").manifest


def ordinary(width: int) -> Tensors:
    values = np.random.default_rng(0).normal(size=(8, width))
    return {"x": np.abs(values).astype(np.float32)}


def test_rows_that_are_apart_share_batches(tmp_path: Path) -> None:
    manifest = converted(linear_model(), tmp_path, ordinary(4), precision="fp32")
    assert (manifest.interface.max_batch, manifest.batching) == (32, APART)
    measured = [m.batching for v in manifest.variants for m in v.measured]
    assert measured
    assert set(measured) == {SAME}
    with Chain(Bundle.open(tmp_path / "model.edge")) as chain:
        assert chain.batching == SAME


def test_a_detector_is_not_batched_whatever_its_samples_have(tmp_path: Path) -> None:
    """Each of the samples has one object, so that two of them in a batch look as if rows stayed apart."""
    model = linear_model()
    graph = model.graph
    graph.node[-1].output[0] = "all"
    for op, read, made, more in (
        ("ReduceSum", "x axis", "score", {"keepdims": 0}),
        ("Greater", "score zero", "found", {}),
        ("Compress", "all found", "boxes", {"axis": 0, "name": "keep"}),
    ):
        graph.node.append(helper.make_node(op, read.split(), made.split(), **more))
    graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
    graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    graph.output[0].name = "boxes"
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "found"
    manifest = converted(model, tmp_path, ordinary(4), precision="fp32")
    assert manifest.interface.max_batch == 0
    assert manifest.batching is not None
    assert "rows interact (Compress 'keep'" in manifest.batching.reason
    with Chain(Bundle.open(tmp_path / "model.edge")) as chain:
        assert chain.batching == manifest.batching
        x = np.float32([[1, 1, 1, 1], [-1, -1, -1, -1], [2, 2, 2, 2]])
        boxes = chain.run({"x": x})[0]["boxes"]  # one client's rows are taken together
        np.testing.assert_allclose(boxes, linear(x[[0, 2]]), rtol=1e-4)


@pytest.mark.slow
def test_dynamic_int8_is_run_one_request_at_a_time(tmp_path: Path) -> None:
    manifest = converted(
        perceptron(512),
        tmp_path,
        ordinary(512),
        precision="int8",
        recipes=["dynamic"],
        max_drop=100.0,
    )
    assert manifest.batching == APART
    variant = manifest.variant("onnx-int8-dynamic")
    assert variant.batching is not None
    assert variant.batching.max_batch == 1
    assert DYNAMIC in variant.batching.reason
    assert [m.batching for m in variant.measured] == [variant.batching]
    others = [m.batching for v in manifest.variants if v is not variant for m in v.measured]
    assert set(others) <= {SAME}
