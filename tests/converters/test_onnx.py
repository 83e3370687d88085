"""The converters from ONNX that run in this environment, compared with onnxruntime on the source."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from edgeserve.conversion.tools.registry import (
    UnsupportedOperators,
    converter_called,
    run_converter,
)
from edgeserve.tensors import Interface, Tensors
from tests.bundles import linear_model
from tests.networks import SMALL_CNN, images, small_cnn, with_unknown_op


def convert(
    model: onnx.ModelProto, tmp_path: Path, output_format: str, **options: object
) -> list[Path]:
    onnx.save(model, tmp_path / "source.onnx")
    out = tmp_path / "out"
    out.mkdir()
    name = {"onnx": "onnx-to-onnx", "openvino-ir": "onnx-to-openvino"}[output_format]
    converter = converter_called(name)
    return run_converter(
        converter,
        tmp_path / "source.onnx",
        out,
        options,
        tool_env=False,
        say=lambda what, share: None,
    )


def run(model: Path | bytes, inputs: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model))
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_openvino(path: Path, inputs: Tensors) -> Tensors:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs)
    return {port.get_any_name(): found[port] for port in compiled.outputs}


def assert_alike(got: Tensors, wanted: Tensors, atol: float) -> None:
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, atol=atol)


def test_onnx_fp32_is_a_checked_copy(tmp_path: Path) -> None:
    inputs = {"image": images(2)}
    (file,) = convert(small_cnn(), tmp_path, "onnx")
    assert_alike(run(file, inputs), run(small_cnn().SerializeToString(), inputs), 0)


def test_onnx_fp16_halves_the_file_and_keeps_fp32_borders(tmp_path: Path) -> None:
    """Also for an output that is read inside the graph."""
    inputs = {"image": images(2)}
    source = small_cnn()
    (file,) = convert(source, tmp_path, "onnx", precision="fp16")
    assert_alike(run(file, inputs), run(source.SerializeToString(), inputs), 2e-2)
    stored = {t.data_type for t in onnx.load(file).graph.initializer if t.dims}
    assert stored == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("options", [{"batch": 3}, {"input_shapes": {"image": [3, 3, 32, 32]}}])
@pytest.mark.parametrize("output_format", ["onnx", "openvino-ir"])
def test_dimensions_are_fixed_on_request(
    tmp_path: Path, output_format: str, options: dict[str, object]
) -> None:
    import openvino

    main = convert(small_cnn(), tmp_path, output_format, **options)[0]
    model = openvino.Core().read_model(str(main))
    assert [tuple(p.shape) for p in model.inputs] == [(3, 3, 32, 32)]
    assert [tuple(p.shape) for p in model.outputs] == [(3, 10), (3, 8, 16, 16)]


@pytest.mark.parametrize("name", ["cnn", "linear"])
def test_openvino_fp32_gives_the_sources_numbers(tmp_path: Path, name: str) -> None:
    model, inputs = {
        "cnn": (small_cnn(), {"image": images(2)}),
        "linear": (linear_model(), {"x": np.eye(4, dtype=np.float32)}),
    }[name]
    main, weights = convert(model, tmp_path, "openvino-ir", precision="fp32")
    assert (main.suffix, weights.suffix) == (".xml", ".bin")
    assert_alike(run_openvino(main, inputs), run(model.SerializeToString(), inputs), 1e-5)


def test_openvino_fp16_halves_the_weights(tmp_path: Path) -> None:
    _, weights = convert(small_cnn(), tmp_path, "openvino-ir", precision="fp16")
    stored = sum(np.prod(t.dims) for t in small_cnn().graph.initializer) * 2
    assert weights.stat().st_size < 1.2 * stored


def test_openvino_keeps_int8_weights_of_qdq_models(tmp_path: Path) -> None:
    from edgeserve.evaluate.made_up import made_up_samples
    from edgeserve.quantize import StaticQuantizer
    from edgeserve.targets.schema import load_target

    # Wide enough that the weights outweigh the scales.
    wide = _wide_model()
    onnx.save(wide, tmp_path / "fp32.onnx")
    interface = Interface(SMALL_CNN.inputs, SMALL_CNN.outputs[:1])
    # The tests' CPU may be one whose sums saturate.
    scheme = msgspec.structs.replace(load_target("cpu-x86").quantization, reduce_range=True)
    samples = made_up_samples(interface, 4)
    quantizer = StaticQuantizer(tmp_path / "fp32.onnx", samples, scheme, tmp_path)
    quantizer.quantize(tmp_path / "int8.onnx")
    main, weights = convert(onnx.load(tmp_path / "int8.onnx"), tmp_path, "openvino-ir")
    assert weights.stat().st_size < 0.27 * (tmp_path / "fp32.onnx").stat().st_size
    inputs = {"image": images(1)}
    got, wanted = run_openvino(main, inputs), run(tmp_path / "fp32.onnx", inputs)
    error = np.sqrt(np.mean((got["logits"] - wanted["logits"]) ** 2))
    assert error < 0.1 * np.sqrt(np.mean(wanted["logits"] ** 2))


def _wide_model() -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    kernel = random.normal(size=(64, 3, 3, 3)).astype(np.float32) / 5
    deep = random.normal(size=(256, 64, 3, 3)).astype(np.float32) / 24
    last = random.normal(size=(10, 256, 1, 1)).astype(np.float32) / 16
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1"], ["a"], name="one", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Conv", ["b", "w2"], ["c"], name="two", strides=[4, 4]),
            helper.make_node("Conv", ["c", "w3"], ["d"], name="three"),
            helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
            helper.make_node("Flatten", ["e"], ["logits"], name="flat"),
        ],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(a, n) for a, n in ((kernel, "w1"), (deep, "w2"), (last, "w3"))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_openvino_names_an_operator_it_lacks_and_its_node(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperators, match=r"cannot convert operator acme\.Sparkle") as got:
        convert(with_unknown_op(), tmp_path, "openvino-ir")
    assert got.value.ops == ["acme.Sparkle"]
    assert "operator acme.Sparkle (node 'weird')" in str(got.value.cause)
    assert got.value.exit_code == 2


def test_openvino_names_a_standard_operator_without_its_opset(tmp_path: Path) -> None:
    model = with_unknown_op()
    node = model.graph.node[1]
    node.op_type, node.domain = "StringNormalizer", ""
    with pytest.raises(UnsupportedOperators) as got:
        convert(model, tmp_path, "openvino-ir")
    assert got.value.ops == ["StringNormalizer"]
    assert "node 'weird'" in str(got.value.cause)
