"""Sources that are quantized already: named, taken as they are, and compared with themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

import edgeserve
from edgeserve.bundle import Bundle, Fidelity, Measured
from edgeserve.checking import check
from edgeserve.conversion.bounds import Bounds
from edgeserve.conversion.search.choose import VariantTrial, choose, without_worse_than_source
from edgeserve.conversion.tools.registry import converter_called, runs_here
from edgeserve.errors import CheckFailed, UsageError
from edgeserve.formats.reading import read_model
from edgeserve.inspecting import inspect_model
from edgeserve.runtimes.detect import resolve_target
from edgeserve_converters.onnx_to_onnx import CONVERTER
from tests.conversion.test_made import dense, target
from tests.networks import small_cnn

DATA = Path(__file__).resolve().parents[2] / "data"
BOTH = """
name = "both"
title = "openvino, then onnxruntime"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "openvino"
device = "cpu"
precisions = ["int8", "fp32"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
"""


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    """Two products, dynamically quantized."""
    quantize_dynamic(
        str(dense(tmp_path / "fp32.onnx", 1.0, 1.0)),
        str(tmp_path / "m.onnx"),
        weight_type=QuantType.QInt8,
    )
    return tmp_path / "m.onnx"


def test_a_dynamic_source_is_taken_as_it_is(tmp_path: Path, dynamic: Path) -> None:
    """OpenVINO stores it in FP32, and its variant is called that."""
    pytest.importorskip("openvino")
    (tmp_path / "both.toml").write_text(BOTH)
    report = edgeserve.convert(dynamic, tmp_path / "m.edge", target=str(tmp_path / "both.toml"))
    assert {r.variant for r in report.rows} == {"openvino-fp32", "onnx-int8"}
    assert "onnx-int8" in {c.variant for c in report.chain}
    (said,) = [r for r in report.remarks if "already" in r]
    assert said == (
        "the source is already int8 (int8: 2 of 2 layers): it is used as it is, and no recipe was tried"
    )
    bundle = Bundle.open(tmp_path / "m.edge")
    for variant in bundle.manifest.variants:
        assert set(read_model(bundle.root / variant.main).layers) == {variant.precision}
    with edgeserve.load(tmp_path / "m.edge") as model:
        assert model.run({"x": np.ones((1, 64), np.float32)})["y"].shape == (1, 64)


def test_recipes_are_not_tried_on_it(tmp_path: Path, dynamic: Path) -> None:
    options = {"target": target(tmp_path), "recipes": ["weights"], "precision": "int8"}
    with pytest.raises(CheckFailed, match="the source is already int8"):
        edgeserve.convert(dynamic, tmp_path / "m.edge", strict=True, **options)
    with pytest.raises(UsageError, match="--explain ranks layers of FP32 models"):
        edgeserve.convert(
            dynamic, tmp_path / "m.edge", target=target(tmp_path), explain=True, calibrate="random"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision"), [("static", "int8"), ("weights", "int4")])
def test_what_edgeserve_quantized_is_a_quantized_source(
    tmp_path: Path, recipe: str, precision: str
) -> None:
    if recipe == "static":
        onnx.save(small_cnn(), tmp_path / "m.onnx")
    else:
        dense(tmp_path / "m.onnx", 1.0, 1.0)
    edgeserve.convert(
        tmp_path / "m.onnx", tmp_path / "first.edge", target=target(tmp_path), recipes=[recipe],
        precision=precision, calibrate="random", min_fidelity=0.0,
    )  # fmt: skip
    bundle = Bundle.open(tmp_path / "first.edge")
    (variant,) = [v for v in bundle.manifest.variants if v.precision == precision]
    report = edgeserve.convert(
        bundle.root / variant.main, tmp_path / "second.edge", target=target(tmp_path)
    )
    assert [c.variant for c in report.chain] == [f"onnx-{precision}"]
    assert any(f"the source is already {precision}" in r for r in report.remarks)


def trial(entry: int, size: int, speedup: float, sqnr_db: float = 60.0) -> VariantTrial:
    fidelity = Fidelity(8, sqnr_db, 1.0, 0.0, 1.0)
    found = Measured("r", "1", "cpu", "m", fidelity, 1.0, speedup, "fp32", 0, 1)
    return VariantTrial(entry, f"v{entry}", "fp32", size, found)


@pytest.mark.parametrize(
    ("size", "speedup", "chosen"),
    [
        (3000, 0.35, False),
        (3000, 1.5, True),  # larger, but faster
        (1000, 0.35, True),  # slower, but as small
    ],
)
def test_what_is_larger_and_slower_than_the_source_is_not_chosen(
    size: int, speedup: float, chosen: bool
) -> None:
    trials = [trial(0, size, speedup), trial(1, 1000, 1.0)]
    bounds = Bounds(speed_counts=False, source="int8")
    verdicts = without_worse_than_source(choose(trials, bounds), 1000, {0: "cpu", 1: "cpu"})
    assert [v.chosen for v in verdicts] == [chosen, True]
    alone = without_worse_than_source(choose(trials[:1], bounds), 1000, {0: "cpu"})
    assert alone[0].chosen  # nothing else serves
    elsewhere = without_worse_than_source(choose(trials, bounds), 1000, {0: "npu", 1: "cpu"})
    assert elsewhere[0].chosen  # the target is about its device


def halved(source: Path, copy: Path) -> Path:
    """A TFLite file whose constants are FP16, each with a DEQUANTIZE behind it, as TensorFlow writes them."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 3
    model.operatorCodes.append(code)
    graph, made = model.subgraphs[0], []
    for index, tensor in enumerate(list(graph.tensors)):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or not len(data):
            continue
        half, buffer, op = schema.TensorT(), schema.BufferT(), schema.OperatorT()
        numbers = np.frombuffer(bytes(data), np.float32).astype(np.float16)
        buffer.data = np.frombuffer(numbers.tobytes(), np.uint8)
        model.buffers.append(buffer)
        half.name, half.shape, half.type = (
            tensor.name + b"_half",
            tensor.shape,
            schema.TensorType.FLOAT16,
        )
        half.buffer, tensor.buffer = len(model.buffers) - 1, 0
        graph.tensors.append(half)
        op.opcodeIndex = len(model.operatorCodes) - 1
        op.inputs, op.outputs = [len(graph.tensors) - 1], [index]
        made.append(op)
    graph.operators = [*made, *graph.operators]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    copy.write_bytes(bytes(builder.Output()))
    return copy


@pytest.mark.skipif(
    not runs_here(converter_called("tflite-to-tflite")), reason="needs ai-edge-quantizer"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tflite_file_with_fp16_weights_is_quantized(tmp_path: Path) -> None:
    source = halved(DATA / "small-cnn-fp32.tflite", tmp_path / "half.tflite")
    assert inspect_model(source).layers == {"fp16": 6}
    edgeserve.convert(source, tmp_path / "m.edge", target=target(tmp_path, "litert"),
                      precision="int8", calibrate="random", min_fidelity=0.0, strict=True)  # fmt: skip
    bundle = Bundle.open(tmp_path / "m.edge")
    (variant,) = [v for v in bundle.manifest.variants if v.precision == "int8"]
    assert read_model(bundle.root / variant.main).layers == {"int8": 6}
    assert variant.size_bytes < source.stat().st_size


def test_check_says_of_every_format_that_it_is_quantized(tmp_path: Path, dynamic: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    for path in (dynamic, DATA / "small-cnn-int8.tflite"):
        rules = {f.rule for f in check(path, [resolve_target("auto")]).findings}
        assert "already-quantized" in rules


def test_an_fp16_source_is_called_that(tmp_path: Path) -> None:
    """Its own file is no fp32 variant, and a cast would change nothing."""
    (tmp_path / "out").mkdir()
    onnx.save(small_cnn(), tmp_path / "m.onnx")
    (half,) = CONVERTER.convert(tmp_path / "m.onnx", tmp_path / "out", {"precision": "fp16"})
    report = edgeserve.convert(half, tmp_path / "m.edge", target=target(tmp_path))
    assert [c.variant for c in report.chain] == ["onnx-fp16"]
    bundle = Bundle.open(tmp_path / "m.edge")
    assert read_model(bundle.root / bundle.manifest.variants[0].main).layers == {"fp16": 6}
    with edgeserve.load(tmp_path / "m.edge") as model:
        assert model.candidate.label == "onnxruntime/cpu/onnx-fp16"
    with pytest.raises(UsageError, match="int8 needs calibration data"):
        edgeserve.convert(half, tmp_path / "8.edge", target=target(tmp_path), precision="int8")
