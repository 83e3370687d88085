"""What `convert` holds in memory, and when: copies of the weights that nobody needs are given back."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve.conversion.memory import APART_BYTES
from edgeserve.conversion.sources.graph import Graph
from edgeserve.conversion.sources.onnx import kept_on_disk, open_reference, read_onnx
from edgeserve.conversion.sources.reference import Reference
from edgeserve.errors import SourceError
from edgeserve.runtimes import Session

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def network(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Two products, of large matrices: one an initializer, one a Constant in a branch; and a small table."""
    large = np.random.default_rng(0).standard_normal((300, 300), dtype=np.float32)
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(large, "inner")),
            helper.make_node("MatMul", ["h", "w"], ["b"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "outer"], ["h"], name="first"),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    outer = numpy_helper.from_array(large, "outer")
    if kind != TensorProto.FLOAT:
        outer.data_type = kind
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 300])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 300])],
            [outer, numpy_helper.from_array(np.array(True), "yes")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_the_saved_model_is_whole_and_the_one_in_memory_has_no_weights(tmp_path: Path) -> None:
    onnx.save_model(network(), tmp_path / "m.onnx")
    whole = read_onnx(tmp_path / "m.onnx")

    kept = kept_on_disk(whole, tmp_path / "source")

    assert kept.file is not None
    assert onnx.load_model(kept.file) == whole.proto
    assert whole.proto.ByteSize() > 700_000
    assert kept.proto.ByteSize() < 2_000
    graph = Graph(kept.proto)
    assert graph.constant("yes") == np.array(True)
    assert graph.constant("outer") is None
    assert graph.dims("outer") == (300, 300)
    assert [n.name for n in kept.proto.graph.node] == [n.name for n in whole.proto.graph.node]
    assert Graph(whole.proto).sizes("h", 4) == graph.sizes("h", 4)
    x = np.ones((2, 300), np.float32)
    session = open_reference(kept, kept.file)
    large = numpy_helper.to_array(whole.proto.graph.initializer[0])
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ large @ large, rtol=1e-3, atol=1e-2)
    session.close()


@pytest.mark.parametrize("field", ["float_data", "none"])
def test_large_tensors_in_other_fields_are_checked(tmp_path: Path, field: str) -> None:
    model = network()
    outer = model.graph.initializer[0]
    values = numpy_helper.to_array(outer).ravel().tolist()
    outer.ClearField("raw_data")
    if field == "float_data":
        outer.float_data.extend(values)
        onnx.save_model(model, tmp_path / "m.onnx")
        kept = kept_on_disk(read_onnx(tmp_path / "m.onnx"), tmp_path / "source")
        assert kept.proto.ByteSize() < 2_000
        return
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="is not a valid ONNX model"):
        read_onnx(tmp_path / "m.onnx")


class Counted:
    """How often a source is opened, and how many of its sessions are open."""

    def __init__(self, file: Path) -> None:
        self._model = kept_on_disk(read_onnx(file), file.parent / "source")
        self.opened = 0

    def __call__(self, threads: int = 0) -> Session:
        assert self._model.file is not None
        self.opened += 1
        return open_reference(self._model, self._model.file, threads)


@pytest.mark.parametrize(("size", "opened"), [(APART_BYTES, 1), (APART_BYTES + 1, 2)])
def test_only_a_large_source_makes_room_and_answers_again(
    tmp_path: Path, size: int, opened: int
) -> None:
    onnx.save_model(network(), tmp_path / "m.onnx")
    counted = Counted(tmp_path / "m.onnx")
    reference = Reference(counted(), size, counted)
    x: dict[str, Any] = {"x": np.ones((1, 300), np.float32)}
    before = reference.run(x)["y"]

    reference.make_room()

    np.testing.assert_array_equal(reference.run(x)["y"], before)
    assert counted.opened == opened
    reference.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of processes is read from /proc")
@pytest.mark.parametrize("beside", [False, True])
def test_a_large_model_takes_a_few_times_its_size(tmp_path: Path, beside: bool) -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    source = tmp_path / "source"
    source.mkdir()
    size = benchmark["write_model"](source / "model.onnx", 250, beside=beside)
    assert size > APART_BYTES

    peak, _ = benchmark["peak_of"](
        [sys.executable, "-m", "edgeserve", "convert", str(source / "model.onnx"), "-o",
         str(tmp_path / "model.edge"), "--precision", "fp32"]
    )  # fmt: skip

    base = 250_000_000  # the interpreter, onnxruntime and OpenVINO without a model
    assert peak - base < 4.5 * size, f"{peak / size:.1f} times its size"
