"""Files for devices that are not here: loaded and run on the CPU before they are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Fidelity, Variant, VariantFiles
from edgeserve.conversion.search.choose import Decision, Elsewhere, VariantTrial, ordered_chain
from edgeserve.conversion.search.timing import Contender, open_stand_in
from edgeserve.errors import CheckFailed, DeviceUnavailable
from edgeserve.runtimes.detect import resolve_target
from edgeserve.targets.schema import ChainEntry
from edgeserve.tensors import Interface, TensorSpec

TARGET = """
name = "board"
title = "an NPU that no machine has through onnxruntime, then the CPU"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "onnxruntime"
device = "npu"
precisions = ["fp16", "fp32"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["fp32"]
"""


def scaled(path: Path, factor: float) -> Path:
    """x @ w, times the factor twice, divided by its square: beyond FP16 in between where it is large."""
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    numbers = {"w": weight, "k": np.float32(factor)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mul", ["m", "k"], ["a"]), helper.make_node("Mul", ["a", "k"], ["b"]),
        helper.make_node("Div", ["b", "k"], ["c"]), helper.make_node("Div", ["c", "k"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 8])],
        [numpy_helper.from_array(a, n) for n, a in numbers.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


@pytest.mark.parametrize(("factor", "kept"), [(4.0, False), (1000.0, True)])
def test_values_beyond_fp16_stay_in_fp32(tmp_path: Path, factor: float, kept: bool) -> None:
    """The CPU computes FP16 in FP32: whether they fit is looked for in the source."""
    (tmp_path / "board.toml").write_text(TARGET)
    report = edgeserve.convert(
        scaled(tmp_path / "m.onnx", factor),
        tmp_path / "m.edge",
        target=str(tmp_path / "board.toml"),
    )
    assert [(c.device, c.variant) for c in report.chain] == [
        ("npu", "onnx-fp16"),
        ("cpu", "onnx-fp32"),
    ]
    reasons = {r.variant: r.reason for r in report.rows if r.device == "npu"}
    assert "its file runs on onnxruntime/cpu with an SQNR of" in reasons["onnx-fp16"]
    made = onnx.load(tmp_path / "m.edge" / "variants" / "onnx-fp16" / "model.onnx").graph.node
    assert ("b_fp16" in {name for node in made for name in node.output}) is not kept
    said = [r for r in report.remarks if "largest FP16 number" in r]
    assert len(said) == kept
    assert all(
        r.startswith("1 value reaches") and r.endswith("computes them in FP32") for r in said
    )


def test_a_file_that_loads_nowhere_is_not_taken(tmp_path: Path) -> None:
    """What case 21 made: a reader of FP16 behind a Cast to FLOAT."""
    broken = scaled(tmp_path / "m.onnx", 2.0)
    proto = onnx.load(broken)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    onnx.save(proto, broken)
    interface = Interface(*[(TensorSpec(n, "FP32", ("b", 8)),) for n in "xy"])
    entry = ChainEntry(runtime="onnxruntime", device="npu", precisions=("fp16",))
    variant = Variant("onnx-fp16", "onnx", "fp16", "m.onnx", (), 0.02)
    files = VariantFiles("onnx-fp16", broken, "onnx", "fp16", interface)
    trial = VariantTrial(0, "onnx-fp16", "fp16", unverified="no NPU")
    done, session = open_stand_in(trial, Contender(0, entry, variant, files), 1)
    assert session is None
    assert (done.problem or "").startswith("its file does not load on onnxruntime/cpu either: ")


def test_what_nothing_here_loads_comes_last() -> None:
    target = resolve_target("intel-npu")
    seen = Elsewhere("onnxruntime/cpu", Fidelity(8, 60.0, 1.0, 0.0))
    trials = [
        VariantTrial(0, "a", "fp16", unverified="no NPU"),
        VariantTrial(len(target.chain) - 1, "b", "fp32", unverified="no CPU", elsewhere=seen),
    ]
    chain = ordered_chain([Decision(t, chosen=True, reason="") for t in trials], target)
    assert [c.variant for c in chain] == ["b", "a"]


WITHOUT_BF16 = """
name = "plain"
title = "this CPU"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "openvino"
device = "cpu"
precisions = ["bf16", "fp32"]
"""


def test_bf16_on_a_cpu_without_it_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by name, on the target's own CPU: where that has bf16, it is told that it has not."""
    pytest.importorskip("openvino")
    from edgeserve.runtimes import openvino

    def lacks(model: VariantFiles) -> str:
        if model.precision == "bf16":
            raise DeviceUnavailable("this CPU does not compute in bf16")
        return "f32"

    monkeypatch.setattr(openvino, "_cpu_precision", lacks)
    (tmp_path / "plain.toml").write_text(WITHOUT_BF16)
    options = {"target": str(tmp_path / "plain.toml"), "precision": "bf16"}
    source = scaled(tmp_path / "m.onnx", 2.0)
    with pytest.raises(CheckFailed, match="this CPU does not compute in bf16"):
        edgeserve.convert(source, tmp_path / "m.edge", strict=True, **options)
    report = edgeserve.convert(source, tmp_path / "m.edge", **options)
    assert [c.variant for c in report.chain] == ["openvino-fp32"]
