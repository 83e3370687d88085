"""Plain int8 that breaks: convert finds the layers, restores or equalizes them, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.report import Conversion
from edgeserve.devices import machine
from edgeserve.errors import UsageError
from edgeserve.evaluate import load_samples
from edgeserve.quantize import ModelFacts, StaticQuantizer, plans_for, rank_layers
from edgeserve.quantize.equalize import equalize
from edgeserve.targets.schema import Quantization, load_target
from edgeserve.tensors import Interface, TensorSpec

TARGET = """
name = "one"
title = "onnxruntime only; of another CPU, so that speed does not count"
arch = ["riscv64"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
# The tests' CPU may be one whose sums saturate.
[quantization]
reduce_range = true
"""
INTERFACE = Interface(
    (TensorSpec("x", "FP32", ("batch", 3, 16, 16)),), (TensorSpec("y", "FP32", ("batch", 10)),)
)


def network(broken: int | None, blocks: int = 6, clip: bool = False) -> onnx.ModelProto:
    """Blocks of expand (1x1), activation, project (1x1, linear), then a classifier.

    In block `broken` the channels of the linear tensor are rescaled by up to 64 either way, and the layer
    that reads them by the inverse: the function is the same, per-tensor int8 of that tensor is not.
    """
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights = {"low": np.float32(0), "high": np.float32(6)}
    x, channels = "x", 3
    for block in range(blocks):
        for name, width in (("expand", 32), ("project", 16)):
            label = f"{name}{block}"
            kernel = random.normal(size=(width, channels, 1, 1)) * np.sqrt(2 / channels)
            weights[f"{label}.w"] = kernel.astype(np.float32)
            nodes.append(helper.make_node("Conv", [x, f"{label}.w"], [label], name=label))
            x, channels = label, width
            if name == "expand":
                ends = ["low", "high"] if clip else []
                kind = "Clip" if clip else "Relu"
                nodes.append(helper.make_node(kind, [x, *ends], [f"{x}.a"], name=f"{x}.a"))
                x = f"{x}.a"
    if broken is not None:
        scale = np.exp(random.uniform(-np.log(64), np.log(64), 16)).astype(np.float32)
        weights[f"project{broken}.w"] *= scale[:, None, None, None]
        weights[f"expand{broken + 1}.w"] /= scale[None, :, None, None]
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], name="mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat"))
    weights["head"] = random.normal(size=(16, 10)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["y"], name="classify"))
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "one.toml").write_text(TARGET)
    return str(tmp_path / "one.toml")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    means = random.normal(size=(160, 3, 1, 1))
    samples = means + 0.3 * random.normal(size=(160, 3, 16, 16))
    np.save(tmp_path / "x.npy", samples.astype(np.float32))
    return tmp_path / "x.npy"


def converted(model: onnx.ModelProto, target: str, data: Path, *recipes: str) -> Conversion:
    source = data.parent / "model.onnx"
    onnx.save(model, source)
    return edgeserve.convert(
        source, data.parent / "m.edge", target=target, calibrate=data, calibration_samples=64,
        recipes=recipes, min_fidelity=0.9, force=True,
    )  # fmt: skip


def test_the_layers_that_break_int8_are_restored(target: str, data: Path) -> None:
    report = converted(network(2), target, data, "static", "static-restored")
    plain = next(r for r in report.rows if r.variant == "onnx-int8")
    assert plain.failed
    restored = next(r for r in report.rows if r.variant == "onnx-int8-static-restored")
    assert not restored.failed
    assert restored.measured is not None
    assert 0 < restored.measured.int8_compute_ops < restored.measured.compute_ops
    # What reads the rescaled channels is the noisiest by far, and what writes them goes with it.
    assert report.layers[0].node == "expand3"
    assert set(report.layers[0].unit) == {"expand3", "project2"}
    assert report.layers[1].sqnr_db > report.layers[0].sqnr_db + 10
    assert any("nodes were restored to fp32" in remark for remark in report.remarks)
    manifest = Bundle.open(data.parent / "m.edge").manifest
    kept = [v.recipe.kept_fp32 for v in manifest.variants if v.recipe and v.recipe.kept_fp32]
    assert all({"expand3", "project2"} <= set(nodes) for nodes in kept)


@pytest.mark.slow
def test_equalization_repairs_it_without_restoring_anything(target: str, data: Path) -> None:
    report = converted(network(2), target, data)
    rows = {r.variant: r for r in report.rows}
    assert rows["onnx-int8"].failed
    assert not rows["onnx-int8-static-equalized"].failed
    assert "onnx-int8-static-restored" not in rows


def test_a_sound_model_needs_no_second_tier(target: str, data: Path) -> None:
    report = converted(network(None), target, data)
    assert {r.variant for r in report.rows if r.measured} == {"onnx-int8", "onnx-fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
def test_int8_that_may_saturate_only_here_says_so(target: str, data: Path, room: bool) -> None:
    text = TARGET if room else TARGET.replace("reduce_range = true", "reduce_range = false")
    Path(target).write_text(text)
    report = converted(network(None), target, data)
    told = any("no VNNI" in remark for remark in report.remarks)
    assert told is (machine().int8_saturates and not room)


@pytest.mark.slow
def test_explain_ranks_layers_of_a_sound_model_too(target: str, data: Path) -> None:
    source = data.parent / "model.onnx"
    onnx.save(network(None), source)
    report = edgeserve.convert(
        source, data.parent / "m.edge", target=target, calibrate=data, explain=True,
        min_fidelity=0.0,
    )  # fmt: skip
    names = {layer.node for layer in report.layers}
    assert {"expand0", "project5", "classify"} <= names
    assert [e.sqnr_db for e in report.layers] == sorted(e.sqnr_db for e in report.layers)


def test_what_explain_cannot_rank_is_refused_before_the_work(target: str, tmp_path: Path) -> None:
    onnx.save(network(None), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="needs calibration data"):
        edgeserve.convert(tmp_path / "model.onnx", tmp_path / "m.edge", target=target, explain=True)
    tflite = Path(__file__).parents[1] / "data" / "digits-fp32.tflite"
    with pytest.raises(UsageError, match="layers of ONNX models"):
        edgeserve.convert(
            tflite, tmp_path / "m.edge", target=target, calibrate="random", explain=True
        )


def test_layers_that_cannot_be_ranked_cost_no_bundle(target: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"], name="negate")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    report = edgeserve.convert(
        tmp_path / "model.onnx", tmp_path / "m.edge", target=target, calibrate="random",
        explain=True,
    )  # fmt: skip
    assert report.layers == ()
    assert "layers could not be ranked: static int8 quantizes none" in report.remarks


def test_an_unknown_recipe_suggests_the_nearest(target: str, data: Path) -> None:
    with pytest.raises(UsageError, match="no recipe 'statik'") as caught:
        converted(network(None), target, data, "statik")
    assert "static" in (caught.value.hint or "")


# the parts by themselves


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    return np.asarray(session.run(None, {"x": x})[0])


def test_equalizing_keeps_the_function_and_evens_the_ranges(tmp_path: Path) -> None:
    onnx.save(network(2), tmp_path / "a.onnx")
    assert equalize(tmp_path / "a.onnx", tmp_path / "b.onnx") > 0
    x = np.random.default_rng(2).normal(size=(2, 3, 16, 16)).astype(np.float32)
    before, after = run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())

    def spread(file: str) -> float:
        kernels = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        ranges = np.abs(kernels["project2.w"]).reshape(16, -1).max(1)
        return float(ranges.max() / ranges.min())

    assert spread(str(tmp_path / "b.onnx")) < 0.1 * spread(str(tmp_path / "a.onnx"))


def test_equalizing_leaves_alone_what_a_clip_bends(tmp_path: Path) -> None:
    model = network(None, blocks=1, clip=True)
    onnx.save(model, tmp_path / "a.onnx")
    assert equalize(tmp_path / "a.onnx", tmp_path / "b.onnx") == 0
    assert not (tmp_path / "b.onnx").exists()


def quantizer(tmp_path: Path, model: onnx.ModelProto, data: Path) -> StaticQuantizer:
    onnx.save(model, tmp_path / "model.onnx")
    work = tmp_path / "work"
    work.mkdir()
    samples = load_samples(data, INTERFACE, None).take(16)
    return StaticQuantizer(tmp_path / "model.onnx", samples, Quantization(), work)


def test_ranges_are_computed_once_and_kept_nodes_stay_float(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    tool = quantizer(tmp_path, network(None), data)
    tool._progress = lambda done, total: asked.append(done)
    tool.quantize(tmp_path / "all.onnx", "entropy")
    count = len(asked)
    recipe = tool.quantize(tmp_path / "some.onnx", "entropy", keep=["expand3"])
    assert len(asked) == count == 16
    assert recipe.kept_fp32 == ("expand3",)
    nodes = {n.name: n for n in onnx.load(tmp_path / "some.onnx").graph.node}
    assert nodes["expand3"].input[1] == "expand3.w"
    assert capsys.readouterr().out == ""


def test_histograms_are_the_same_in_small_pieces(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for size in (1, 1 << 30):
        monkeypatch.setattr("edgeserve.quantize.onnx_static._CHUNK_BYTES", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        tool = quantizer(folder, network(None), data)
        tool.quantize(folder / "q.onnx", "percentile")
        x = np.load(data)[:8]
        files.append(run(folder / "q.onnx", x))
    error = np.sqrt(np.mean((files[0] - files[1]) ** 2)) / np.sqrt(np.mean(files[1] ** 2))
    assert error < 0.05


def test_a_model_beside_itself_has_no_noisy_layer(tmp_path: Path, data: Path) -> None:
    tool = quantizer(tmp_path, network(None), data)
    tool.quantize(tmp_path / "q.onnx")
    samples = load_samples(data, INTERFACE, None).take(4)
    ranking = rank_layers(tool.prepared, tmp_path / "q.onnx", samples, tmp_path)
    assert all(layer.sqnr_db > 20 for layer in ranking)


def test_plans_name_what_cannot_win() -> None:
    convolves = ModelFacts.of(network(None))
    assert (convolves.convolutions, convolves.matmuls, convolves.attends) == (12, 1, False)
    plans = plans_for("onnx", "int8", convolves, Quantization())
    assert plans[0].variant == "onnx-int8"
    assert {p.recipe for p in plans if p.skip} == {"dynamic", "weights"}
    whole = load_target("coral-edgetpu").quantization
    assert {p.recipe for p in plans_for("tflite", "int8", convolves, whole)} == {"static"}
    assert plans_for("tflite", "fp16", convolves, Quantization()) == []


def matrices(width: int = 128) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {
        f"w{i}": (random.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
        for i in range(3)
    }
    nodes = []
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], name=f"m{i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"], name=f"t{i}"))
    graph = helper.make_graph(
        nodes,
        "matrices",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("h3", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "variant", "share"),
    [("int8", "onnx-int8-dynamic", 0.35), ("int8", "onnx-int8-weights", 0.45),
     ("int4", "onnx-int4", 0.25)],
)  # fmt: skip
def test_matrices_are_quantized_without_data(
    tmp_path: Path, target: str, precision: str, variant: str, share: float
) -> None:
    onnx.save(matrices(), tmp_path / "model.onnx")
    report = edgeserve.convert(
        tmp_path / "model.onnx", tmp_path / "m.edge", target=target, min_fidelity=0.0,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    row = next(r for r in report.rows if r.variant == variant)
    assert row.measured is not None
    assert row.measured.fidelity.cosine > 0.95
    assert (row.size_bytes or 0) < share * (tmp_path / "model.onnx").stat().st_size
    if precision == "int8" and "dynamic" in variant:
        assert row.measured.int8_compute_ops == 3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["static", "dynamic", "weights"])
def test_models_past_two_gigabytes_keep_weights_beside_the_graph(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("edgeserve.quantize.onnx_tools.LARGE_BYTES", 1000)
    monkeypatch.setattr("edgeserve.formats.onnx_weights.PROTOBUF_BYTES", 1000)
    onnx.save(matrices(), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32))
    report = edgeserve.convert(
        tmp_path / "model.onnx", tmp_path / "m.edge", target=target, min_fidelity=0.0,
        calibrate=tmp_path / "x.npy", recipes=[recipe], precision="int8",
    )  # fmt: skip
    assert report.chain[0].variant.startswith("onnx-int8")
    (variant,) = Bundle.open(tmp_path / "m.edge").manifest.variants
    assert {Path(f.path).suffix for f in variant.files} == {".onnx", ".data"}
    with edgeserve.load(tmp_path / "m.edge") as model:
        assert model.run({"h0": np.zeros((1, 128), np.float32)})["h3"].shape == (1, 128)


@pytest.mark.slow
def test_int4_is_tried_where_int8_is_too_large(tmp_path: Path, target: str) -> None:
    onnx.save(matrices(512), tmp_path / "model.onnx")
    report = edgeserve.convert(
        tmp_path / "model.onnx", tmp_path / "m.edge", target=target, min_fidelity=0.0,
        max_size=600_000,
    )  # fmt: skip
    rows = {r.variant: r for r in report.rows}
    assert "--max-size" in rows["onnx-int8-weights"].reason
    assert rows["onnx-int4"].chosen
    assert (rows["onnx-int4"].size_bytes or 0) <= 600_000
