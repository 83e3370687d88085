"""ONNX -> TFLite -> int8, in the real tool environment, and its result in LiteRT."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Binding, Precision, VariantFiles
from edgeserve.conversion.tools.registry import (
    UnsupportedOperators,
    converter_called,
    run_converter,
    runs_here,
)
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.tensors import Interface, Tensors, TensorSpec
from edgeserve_converters._calibration import Requests
from tests.bundles import LINEAR, linear_model
from tests.networks import SMALL_CNN, images, small_cnn, with_unknown_op

DATA = Path(__file__).parent.parent / "data"


def convert(source: Path, out: Path, name: str, **options: object) -> Path:
    out.mkdir()
    return run_converter(
        converter_called(name), source, out, options, tool_env=True, say=lambda what, share: None
    )[0]


def run(main: Path, precision: Precision, interface: Interface, inputs: Tensors) -> Tensors:
    """Through the runtime, with the bindings that lie beside the file."""
    bindings = {}
    beside = main.parent / "bindings.json"
    if beside.exists():
        read = json.loads(beside.read_text())
        bindings = {
            name: Binding(b["name"], tuple(b["permutation"]) if b["permutation"] else None)
            for name, b in {**read["inputs"], **read["outputs"]}.items()
        }
    model = VariantFiles("t", main, "tflite", precision, interface, 1, bindings)
    return runtime("litert").load(model, "cpu", LoadOptions()).run(inputs)


def reference(model: onnx.ModelProto, inputs: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "linear"])
def test_onnx_to_tflite_gives_the_sources_numbers(tmp_path: Path, name: str) -> None:
    """Depthwise, ReLU6, residual, and an output that is read inside, which onnx2tf alone loses."""
    model, interface, inputs = {
        "cnn": (small_cnn(), SMALL_CNN, {"image": images(3)}),
        "linear": (linear_model(), LINEAR, {"x": np.eye(4, dtype=np.float32)}),
    }[name]
    onnx.save(model, tmp_path / "model.onnx")
    main = convert(tmp_path / "model.onnx", tmp_path / "out", "onnx-to-tflite", batch=1)
    got = run(main, "fp32", interface, inputs)
    for output, array in reference(model, inputs).items():
        np.testing.assert_allclose(got[output], array, atol=1e-5)


@pytest.mark.slow
def test_an_operator_tflite_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    """onnx2tf writes a file for it without a word, which then does not load."""
    onnx.save(with_unknown_op(), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperators) as raised:
        convert(tmp_path / "model.onnx", tmp_path / "out", "onnx-to-tflite")
    assert raised.value.ops == ["acme.Sparkle"]
    assert "node 'weird'" in str(raised.value.cause)


@pytest.mark.slow
def test_an_operator_of_onnxruntime_s_own_domain_is_translated(tmp_path: Path) -> None:
    """onnx2tf writes over its input, without domains: nothing could be compared with that."""
    graph = helper.make_graph(
        [helper.make_node("Inverse", ["x"], ["y"], name="invert", domain="com.microsoft")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    main = convert(tmp_path / "model.onnx", tmp_path / "out", "onnx-to-tflite")
    interface = Interface(
        (TensorSpec("x", "FP32", (1, 4, 4)),), (TensorSpec("y", "FP32", (1, 4, 4)),)
    )
    noise = np.random.default_rng(0).normal(size=(1, 4, 4), scale=0.1)
    inputs = {"x": (np.eye(4)[None] + noise).astype(np.float32)}
    got = run(main, "fp32", interface, inputs)
    np.testing.assert_allclose(got["y"], np.linalg.inv(inputs["x"]), atol=1e-4)


@pytest.mark.skipif(
    not runs_here(converter_called("tflite-to-tflite")), reason="needs ai-edge-quantizer"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_static_int8_is_near_the_source(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "calibration.npz",
        **{f"{i}/image": image[None] for i, image in enumerate(images(32, seed=2))},
    )
    main = convert(
        DATA / "small-cnn-fp32.tflite",
        tmp_path / "out",
        "tflite-to-tflite",
        precision="int8",
        calibration=str(tmp_path / "calibration.npz"),
    )
    inputs = {"image": images(32)}
    got = run(main, "int8", SMALL_CNN, inputs)["logits"]
    wanted = reference(small_cnn(), inputs)["logits"]
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)) > 20


def with_signature_input(file: Path, name: str, copy: Path) -> Path:
    """The file, whose signature calls its input so, as TensorFlow's call it otherwise than the tensor."""
    flatbuffers = pytest.importorskip("flatbuffers", reason="needs ai-edge-litert")
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))
    model.signatureDefs[0].inputs[0].name = name.encode()
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    copy.write_bytes(bytes(builder.Output()))
    return copy


@pytest.mark.skipif(
    not runs_here(converter_called("tflite-to-tflite")), reason="needs ai-edge-quantizer"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_signature_may_call_inputs_otherwise_than_their_tensors(tmp_path: Path) -> None:
    renamed = with_signature_input(
        DATA / "small-cnn-fp32.tflite", "picture", tmp_path / "renamed.tflite"
    )
    tensor = Interpreter(str(renamed)).get_input_details()[0]["name"]
    assert tensor != "picture"
    np.savez(
        tmp_path / "calibration.npz",
        **{f"{i}/{tensor}": image[None] for i, image in enumerate(images(32, seed=2))},
    )
    main = convert(
        renamed,
        tmp_path / "out",
        "tflite-to-tflite",
        precision="int8",
        calibration=str(tmp_path / "calibration.npz"),
    )
    spec = msgspec.structs.replace(SMALL_CNN.inputs[0], name=tensor)
    interface = msgspec.structs.replace(SMALL_CNN, inputs=(spec,))
    got = run(main, "int8", interface, {tensor: images(32)})["logits"]
    wanted = reference(small_cnn(), {"image": images(32)})["logits"]
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)) > 20


@pytest.mark.skipif(
    not runs_here(converter_called("tflite-to-tflite")), reason="needs ai-edge-quantizer"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_calibrating_in_parts_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(
        tmp_path / "calibration.npz",
        **{f"{i}/image": image[None] for i, image in enumerate(images(12, seed=2))},
    )
    written = []
    for at_once in (100, 5):
        monkeypatch.setattr("edgeserve_converters.tflite_to_tflite._AT_ONCE", at_once)
        main = convert(
            DATA / "small-cnn-fp32.tflite",
            tmp_path / f"out{at_once}",
            "tflite-to-tflite",
            precision="int8",
            calibration=str(tmp_path / "calibration.npz"),
        )
        written.append(main.read_bytes())
    assert written[0] == written[1]


def test_calibration_requests_are_read_one_at_a_time(tmp_path: Path) -> None:
    large = np.ones((1, 250_000), np.float32)
    np.savez(tmp_path / "r.npz", **{f"{i}/x": large * i for i in range(30)})
    requests = Requests(tmp_path / "r.npz")
    tracemalloc.start()
    for _ in range(2):
        assert [float(r["x"][0, 0]) for r in requests] == list(range(30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(requests) == 30
    assert peak < 6 * large.nbytes


POOLED = Interface(
    (TensorSpec("image", "FP32", ("batch", 3, 12, 12)),),
    (TensorSpec("y", "FP32", ("batch", 10)),),
    max_batch=8,
)


def pooled(*, rectified: bool) -> onnx.ModelProto:
    """Convolution, perhaps a Relu, a maximum with padding on both sides, classifier."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "head": random.normal(size=(8, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="c", pads=[1, 1, 1, 1]),
        *([helper.make_node("Relu", ["c"], ["r"], name="r")] if rectified else []),
        helper.make_node(
            "MaxPool", ["r" if rectified else "c"], ["p"], name="p", kernel_shape=[3, 3],
            strides=[2, 2], pads=[1, 1, 1, 1],
        ),
        helper.make_node("GlobalAveragePool", ["p"], ["m"], name="m"),
        helper.make_node("Flatten", ["m"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "head"], ["y"], name="y"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.skipif(
    not runs_here(converter_called("tflite-to-tflite")), reason="needs ai-edge-quantizer"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("operators", "scales"),
    [([], [8, 24, 24, 8, 32, 10]), (["FULLY_CONNECTED"], [8, 24, 24, 8, 32, 1]), (["*"], [1] * 6)],
)
def test_weights_get_one_scale_where_it_is_asked_for(
    tmp_path: Path, operators: list[str], scales: list[int]
) -> None:
    np.savez(tmp_path / "c.npz", **{f"{i}/image": x[None] for i, x in enumerate(images(4))})
    main = convert(
        DATA / "small-cnn-fp32.tflite", tmp_path / "out", "tflite-to-tflite", precision="int8",
        calibration=str(tmp_path / "c.npz"), per_tensor=operators,
    )  # fmt: skip
    interpreter = Interpreter(str(main))
    tensors = {d["index"]: d for d in interpreter.get_tensor_details()}
    weights = [
        tensors[o["inputs"][1]]["quantization_parameters"]["scales"]
        for o in interpreter._get_ops_details()
        if o["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert [len(s) for s in weights] == scales


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rectified", [True, False], ids=["after-relu", "of-any-sign"])
def test_a_padded_maximum_survives_static_int8(tmp_path: Path, rectified: bool) -> None:
    """ONNX pads it with the lowest float: ai-edge-quantizer fails on that, or loses all precision."""
    model = pooled(rectified=rectified)
    onnx.save(model, tmp_path / "model.onnx")
    samples = np.random.default_rng(1).normal(size=(16, 1, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "c.npz", **{f"{i}/image": s for i, s in enumerate(samples)})
    fp32 = convert(tmp_path / "model.onnx", tmp_path / "fp32", "onnx-to-tflite", batch=1)
    main = convert(
        fp32, tmp_path / "int8", "tflite-to-tflite", method="static", precision="int8",
        calibration=str(tmp_path / "c.npz"),
    )  # fmt: skip
    inputs = {"image": samples[0]}
    wanted = reference(model, inputs)["y"]
    np.testing.assert_allclose(run(fp32, "fp32", POOLED, inputs)["y"], wanted, atol=1e-4)
    got = run(main, "int8", POOLED, inputs)["y"]
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)) > 20
