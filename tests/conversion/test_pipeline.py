"""`convert` end to end on real engines: what it writes, proves, rejects and refuses."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve import api
from edgeserve.bench.interleave import Timings
from edgeserve.bundle import Bundle
from edgeserve.conversion.search.timing import is_clear
from edgeserve.errors import (
    CheckFailed,
    DataError,
    EdgeServeError,
    OutputExists,
    SourceError,
    TargetError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.names import NAME
from tests.bundles import linear_model


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def test_digits_become_a_proven_int8_bundle(
    digits: Path, calibration: str, labelled: str, onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(
        digits,
        tmp_path / "d.edge",
        target=onnxruntime_target,
        calibrate=calibration,
        evaluate=labelled,
        precision="int8",
    )
    (candidate,) = report.chain
    assert (candidate.variant, candidate.runtime) == ("onnx-int8", "onnxruntime")
    row = next(r for r in report.rows if r.chosen)
    assert row.measured is not None
    assert row.measured.accuracy is not None
    assert row.measured.accuracy.drop_points <= 1.0
    assert row.measured.int8_compute_ops == row.measured.compute_ops == 5
    assert row.size_bytes is not None
    assert row.size_bytes < 0.35 * report.source_size_bytes
    manifest = Bundle.open(tmp_path / "d.edge").manifest
    recipe = manifest.variants[0].recipe
    assert recipe is not None
    assert (recipe.scheme, recipe.per_channel) == ("QDQ U8S8", True)
    assert recipe.calibration is not None
    assert (recipe.calibration.samples, recipe.calibration.random) == (128, False)
    assert [p.name for p in tmp_path.iterdir()] == ["d.edge"]


def test_a_loaded_bundle_answers_like_the_source(
    digits: Path, calibration: str, labelled: str, onnxruntime_target: str, tmp_path: Path
) -> None:
    api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target, calibrate=calibration)
    with np.load(labelled) as data:
        images, labels = data["image"], data["label"]
    with api.load(tmp_path / "d.edge") as model:
        assert model.device == "cpu"
        right = sum(
            int(model.run({"image": images[i : i + 8]})["logits"].argmax(1)[j] == labels[i + j])
            for i in range(0, 200, 8)
            for j in range(8)
        )
        assert right / 200 >= 0.97
        with pytest.raises(EdgeServeError, match=r"'image': expected FP32, got FP64"):
            model.run({"image": images[:1].astype(np.float64)})
        assert model.run({"image": images[:1].tolist()})["logits"].shape == (1, 10)


def test_what_comes_close_is_timed_again_at_the_first_run_s_level(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgeserve.conversion.search.search.CLOSE", 1000.0)
    monkeypatch.setattr("edgeserve.conversion.search.search.SECONDS_PER_QUICK_FINALIST", 0.1)
    said: list[str] = []
    report = api.convert(
        digits, tmp_path / "d.edge", target=onnxruntime_target, calibrate=calibration,
        progress=lambda what, share: said.append(what),
    )  # fmt: skip
    assert "timing what comes close" in said
    measured = [r.measured for r in report.rows if r.measured is not None]
    assert len(measured) == 2
    for m in measured:
        assert m.latency_ms * m.speedup == pytest.approx(report.reference_latency_ms, rel=1e-6)


def test_a_quick_model_is_timed_with_the_threads_it_is_served_with(
    digits: Path, onnxruntime_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeserve.conversion.search.timing.usable_cores", lambda: 4)
    report = api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target)
    assert {r.measured.threads for r in report.rows if r.measured} == {1}
    assert any("1 thread per call" in note for note in report.remarks)
    monkeypatch.setattr("edgeserve.devices.instances._QUICK_MS", 0.0)
    report = api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target, force=True)
    assert {r.measured.threads for r in report.rows if r.measured} == {0}
    assert not any("a call" in note for note in report.remarks)


def test_the_race_goes_on_while_it_is_unclear_what_is_as_fast(
    digits: Path, onnxruntime_target: str, tmp_path: Path, calibration: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgeserve.conversion.search.search.CLOSE", 1000.0)
    monkeypatch.setattr("edgeserve.conversion.search.search.SECONDS_PER_QUICK_FINALIST", 0.05)
    verdicts = iter([False, False, True])
    monkeypatch.setattr("edgeserve.conversion.search.timing.is_clear", lambda times: next(verdicts))
    said: list[str] = []
    api.convert(
        digits, tmp_path / "d.edge", target=onnxruntime_target, calibrate=calibration,
        progress=lambda what, share: said.append(what),
    )  # fmt: skip
    assert [s.removeprefix("timing what comes close") for s in said if "close" in s] == [
        "", ", once more", ", once more",
    ]  # fmt: skip


def test_whether_a_raceis_clear() -> None:
    def timings(*medians: float) -> Timings:
        return Timings(np.array(medians), np.arange(len(medians)), 0, True)

    steady = timings(*[1.0] * 20)
    assert is_clear({"a": steady})
    assert is_clear({"a": steady, "b": timings(*[1.2] * 20)})
    assert is_clear({"a": steady, "b": timings(*[1.01] * 20)})
    assert not is_clear({"a": steady, "b": timings(*[0.8, 1.3] * 10)})


def test_without_calibration_data_int8_is_not_tried_and_the_report_says_so(
    digits: Path, onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target)
    assert [r.precision for r in report.rows if r.measured] == ["fp32"]
    assert all(r.reason.startswith("skipped") for r in report.rows if not r.measured)
    assert any("no calibration data" in remark for remark in report.remarks)


def test_random_calibration_is_marked_everywhere(
    digits: Path, onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(
        digits,
        tmp_path / "d.edge",
        target=onnxruntime_target,
        precision="int8",
        calibrate="random",
        min_fidelity=0.0,
    )
    assert any("random data" in remark for remark in report.remarks)
    manifest = Bundle.open(tmp_path / "d.edge").manifest
    int8 = [v for v in manifest.variants if v.recipe and v.recipe.calibration]
    assert all(v.recipe.calibration.random for v in int8 if v.recipe and v.recipe.calibration)


def brittle_model() -> onnx.ModelProto:
    """Channels of wildly different scale summed up: per-tensor activations in int8 lose the small."""
    generator = np.random.default_rng(0)
    wide = (generator.normal(size=(8, 64)) * np.logspace(-4, 4, 64)).astype(np.float32)
    back = (generator.normal(size=(64, 10)) / np.logspace(-4, 4, 64)[:, None]).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "wide"], ["h"], name="spread"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "back"], ["y"], name="gather"),
        ],
        "brittle",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(wide, "wide"), numpy_helper.from_array(back, "back")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_int8_that_is_wrong_is_reported_not_chosen_and_strict_fails(
    onnxruntime_target: str, tmp_path: Path
) -> None:
    source = save(brittle_model(), tmp_path)
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32))
    report = api.convert(
        source, tmp_path / "b.edge", target=onnxruntime_target, precision="int8", calibrate=data
    )
    rejected = next(r for r in report.rows if r.precision == "int8")
    assert not rejected.chosen
    assert "against its spread over samples, --min-sqnr is 10 dB" in rejected.reason
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    rejected_ids = {r.id for r in Bundle.open(tmp_path / "b.edge").manifest.rejected}
    assert {"onnx-int8", "onnx-int8-dynamic"} <= rejected_ids
    assert any("could not be repaired" in remark for remark in report.remarks)
    with pytest.raises(CheckFailed, match="on onnxruntime/cpu, and --strict"):
        api.convert(
            source,
            tmp_path / "s.edge",
            target=onnxruntime_target,
            precision="int8",
            calibrate=data,
            strict=True,
        )
    assert not (tmp_path / "s.edge").exists()


@pytest.mark.slow
def test_openvino_variants_are_made_and_proven(
    digits: Path, calibration: str, tmp_path: Path
) -> None:
    target = tmp_path / "ov.toml"
    target.write_text(
        'name = "ov"\ntitle = "openvino only"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "openvino"\ndevice = "cpu"\nprecisions = ["int8", "fp32"]\n'
        "static_shapes = true\n"
    )
    report = api.convert(digits, tmp_path / "d.edge", target=str(target), calibrate=calibration)
    names = {r.variant for r in report.rows}
    assert names == {
        "openvino-int8", "openvino-int8-nncf", "openvino-int8-nncf-onnx", "openvino-fp32"
    }  # fmt: skip
    for row in report.rows:
        assert row.measured is not None
        assert row.measured.fidelity.sqnr_db > 20
    with api.load(tmp_path / "d.edge") as model:
        assert model.candidate.runtime == "openvino"
        batch = model.run({"image": np.zeros((3, 1, 8, 8), np.float32)})["logits"]
        assert batch.shape == (3, 10)


# Bad input: each says what, why and what to do, with the documented exit code.


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.onnx does not exist"):
        api.convert(tmp_path / "nothing.onnx", tmp_path / "x.edge")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file", b"\x00" * 9])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        api.convert(source, tmp_path / "x.edge")
    assert "model.onnx" in caught.value.message
    assert caught.value.exit_code == 2
    assert not (tmp_path / "x.edge").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused_by_name(digits: Path, tmp_path: Path, share: float) -> None:
    data = digits.read_bytes()
    source = tmp_path / "cut.onnx"
    source.write_bytes(data[: int(share * len(data))])
    with pytest.raises((SourceError, UnsupportedModel), match=r"cut\.onnx") as caught:
        api.convert(source, tmp_path / "x.edge")
    assert caught.value.exit_code == 2


def external_model(folder: Path) -> Path:
    onnx.save_model(
        linear_model(),
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def test_external_data_travels_and_is_counted(onnxruntime_target: str, tmp_path: Path) -> None:
    source = external_model(tmp_path)
    report = api.convert(source, tmp_path / "x.edge", target=onnxruntime_target)
    both = source.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert report.source_size_bytes == both
    (tmp_path / "weights.bin").unlink()
    with api.load(tmp_path / "x.edge") as model:
        assert model.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 3)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    source = external_model(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(SourceError) as caught:
        api.convert(source, tmp_path / "x.edge")
    assert "weights.bin" in (caught.value.cause or "")
    assert "copy weights.bin" in (caught.value.hint or "")


def test_truncated_external_data_says_how_much_is_missing(tmp_path: Path) -> None:
    source = external_model(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(SourceError, match="truncated") as caught:
        api.convert(source, tmp_path / "x.edge")
    assert "got 10" in (caught.value.cause or "")


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    source = external_model(tmp_path)
    model = onnx.load(source, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../etc/passwd"
    onnx.save(model, source)
    with pytest.raises(SourceError, match="outside its folder"):
        api.convert(source, tmp_path / "x.edge")


def test_an_operator_that_no_runtime_knows_is_named_with_its_node(
    onnxruntime_target: str, tmp_path: Path
) -> None:
    model = linear_model()
    model.graph.node[2].op_type = "Warp"
    model.graph.node[2].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedModel) as caught:
        api.convert(save(model, tmp_path), tmp_path / "x.edge", target=onnxruntime_target)
    assert "Warp" in (caught.value.cause or "")
    assert "'clip'" in (caught.value.cause or "")
    assert ".partial-" not in str(caught.value)


def distances(folder: Path) -> Path:
    """onnxruntime has its own com.microsoft operators; OpenVINO's importer does not know this one."""
    graph = helper.make_graph(
        [
            helper.make_node(
                "CDist", ["x", "y0"], ["d"], name="distances", domain="com.microsoft",
                metric="euclidean",
            ),
        ],
        "distances",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.eye(2, 4, dtype=np.float32), "y0")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder)


def test_an_operator_that_openvino_lacks_is_named_and_the_others_serve(tmp_path: Path) -> None:
    source = distances(tmp_path)
    target = tmp_path / "both.toml"
    target.write_text(
        'name = "both"\ntitle = "both"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "openvino"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
    )
    report = api.convert(source, tmp_path / "x.edge", target=str(target))
    assert [c.runtime for c in report.chain] == ["onnxruntime"]
    reason = next(r.reason for r in report.rows if r.runtime == "openvino")
    assert "CDist" in reason
    assert "distances" in reason
    assert f"openvino/cpu, the first choice of both, got no variant: {reason}" in report.remarks
    with pytest.raises(CheckFailed, match="the first choice of both, got no variant") as caught:
        api.convert(source, tmp_path / "s.edge", target=str(target), strict=True)
    assert "CDist" in str(caught.value.cause)
    assert not (tmp_path / "s.edge").exists()


@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        ({"max_size": 1000}, r"onnx-int8 has 10"),
        ({"max_latency": 0.0}, r"onnx-\S+ takes [\d.]+ ms"),
    ],
)
def test_limits_that_nothing_keeps_are_named_with_what_comes_nearest(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path,
    limit: dict[str, Any], hint: str,
) -> None:  # fmt: skip
    with pytest.raises(CheckFailed, match="is within the limits") as caught:
        api.convert(
            digits, tmp_path / "x.edge", target=onnxruntime_target, calibrate=calibration,
            recipes=["static"], **limit,
        )  # fmt: skip
    assert "onnx-fp32: " in (caught.value.cause or "")
    assert re.search(hint, caught.value.hint or "")
    assert not (tmp_path / "x.edge").exists()


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"recipes": ["nncf"]}, "the recipe nncf was not tried for plain: it fits neither"),
        ({"recipes": ["static-restored"]}, "static-restored was not tried for plain: it repairs"),
        ({"precision": "int4"}, "no int4 variant serves plain"),
    ],
)
def test_what_was_asked_for_by_name_and_did_not_come_about_is_said(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path,
    wish: dict[str, Any], said: str,
) -> None:  # fmt: skip
    report = api.convert(
        digits, tmp_path / "x.edge", target=onnxruntime_target, calibrate=calibration, **wish
    )
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    assert any(said in remark for remark in report.remarks)
    with pytest.raises(CheckFailed, match=said):
        api.convert(
            digits, tmp_path / "s.edge", target=onnxruntime_target, calibrate=calibration,
            strict=True, **wish,
        )  # fmt: skip
    assert not (tmp_path / "s.edge").exists()


def test_a_runtime_for_which_nothing_is_planned_is_named(digits: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.toml"
    target.write_text(
        'name = "half"\ntitle = "half"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
        '[[chain]]\nruntime = "litert"\ndevice = "cpu"\nprecisions = ["fp16"]\n'
    )
    report = api.convert(digits, tmp_path / "x.edge", target=str(target))
    said = "litert/cpu got no variant: none of fp16 can be made from this source and data"
    assert said in report.remarks


def test_strict_asks_for_nothing_that_no_converter_makes(tmp_path: Path) -> None:
    """A TFLite file is never made into ONNX: a target that prefers onnxruntime has LiteRT all the same."""
    source = tmp_path / "model.tflite"
    shutil.copy(Path(__file__).parents[1] / "data" / "digits-fp32.tflite", source)
    target = tmp_path / "board.toml"
    target.write_text(
        'name = "board"\ntitle = "board"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
        '[[chain]]\nruntime = "litert"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
    )
    report = api.convert(source, tmp_path / "x.edge", target=str(target), strict=True)
    assert [c.runtime for c in report.chain] == ["litert"]
    assert any("first choice of board, got no variant" in remark for remark in report.remarks)


def test_an_operator_that_the_target_lacks_is_named_with_a_runtime_that_has_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        api.convert(distances(tmp_path), tmp_path / "x.edge", target="intel-npu")
    assert caught.value.message == "no variant for the npu of target intel-npu could be made"
    assert "cannot convert operator com.microsoft.CDist (node 'distances')" in str(
        caught.value.cause
    )
    assert "onnxruntime/cpu can run the model" in (caught.value.hint or "")
    assert not (tmp_path / "x.edge").exists()


def test_a_network_without_products_is_not_called_int8(
    onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(distances(tmp_path), tmp_path / "x.edge", target=onnxruntime_target)
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    reason = next(r.reason for r in report.rows if r.precision == "int8")
    assert reason.startswith("skipped: the network has neither")


def test_dynamic_dimensions_where_the_target_wants_static_name_the_input(tmp_path: Path) -> None:
    model = linear_model()
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"])],
    )
    model.graph.CopyFrom(graph)
    source = save(model, tmp_path)
    with pytest.raises(UnsupportedModel) as caught:
        api.convert(source, tmp_path / "x.edge", target="intel-npu")
    assert "'x' is FP32[batch,length]" in (caught.value.cause or "")
    assert "--shape x=N,N" in (caught.value.cause or "")
    fixed = api.convert(source, tmp_path / "x.edge", target="intel-npu", shapes={"x": (1, 16)})
    assert fixed.chain[0].device == "npu"
    assert "not verified here" in next(
        r.reason for r in fixed.rows if r.device == "npu" and r.chosen
    )


def _npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def _one_nan() -> np.ndarray:
    images = np.zeros((4, 1, 8, 8), np.float32)
    images[2, 0, 3, 3] = np.nan
    return images


def _text(folder: Path) -> Path:
    (folder / "data.txt").write_text("hello")
    return folder / "data.txt"


def _broken_npz(folder: Path) -> Path:
    (folder / "data.npz").write_bytes(b"PK\x03\x04 and then nothing")
    return folder / "data.npz"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "holds no images"),
        (lambda p: _npz(p, image=np.zeros((0, 1, 8, 8), np.float32)), "holds no samples"),
        (lambda p: _npz(p, other=np.zeros((4, 1, 8, 8), np.float32)), "no array for input 'image'"),
        (lambda p: _npz(p, image=np.zeros((4, 1, 9, 9), np.float32)), "wrong shape"),
        (lambda p: _npz(p, image=np.zeros((4, 1, 8, 8), np.int64)), "wrong type"),
        (lambda p: _npz(p, image=np.full((4, 1, 8, 8), np.nan, np.float32)), "holds NaN"),
        (lambda p: _npz(p, image=_one_nan(), label=np.zeros(4)), "NaN to sample 2"),
        (_text, "neither a folder"),
        (_broken_npz, "not a readable"),
    ],
)
def test_calibration_data_that_do_not_fit_are_refused(
    digits: Path, tmp_path: Path, make: object, words: str
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        api.convert(digits, tmp_path / "x.edge", calibrate=path)
    assert words in str(caught.value)
    assert not (tmp_path / "x.edge").exists()


def test_infinity_that_the_model_takes_is_no_mistake(
    onnxruntime_target: str, tmp_path: Path
) -> None:
    """Missing values of a table are such: the model's own answer decides."""
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["x"], ["absent"], name="absent"),
            helper.make_node("Where", ["absent", "zero", "x"], ["y"], name="filled"),
        ],
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    opsets = [helper.make_opsetid("", 17)]
    source = save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    table = np.ones((8, 4), np.float32)
    table[1, 2] = np.nan
    data = _npz(tmp_path, x=table)
    report = api.convert(
        source, tmp_path / "x.edge", target=onnxruntime_target, calibrate=data, precision="fp32"
    )
    assert report.chain


def test_a_file_s_name_with_accents_becomes_one_that_can_be_served(
    onnxruntime_target: str, tmp_path: Path
) -> None:
    source = save(linear_model(), tmp_path, "modèle à l'essai.onnx")
    api.convert(source, tmp_path / "m.edge", target=onnxruntime_target, precision="fp32")
    name = Bundle.open(tmp_path / "m.edge").name
    assert name == "modèle-à-l-essai"
    assert NAME.fullmatch(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": float("nan")}, "--max-drop is nan"),
        ({"max_drop": -1.0}, "--max-drop is -1, which is not 0 or more"),
        ({"min_fidelity": 98.0}, "--min-fidelity is 98, which is not 0 to 1"),
        ({"calibration_samples": 0}, "--calibration-samples must be at least 1"),
        ({"name": "a/b"}, "cannot be a model's name"),
        ({"name": "un modèle"}, "cannot be a model's name"),
        ({"name": ""}, "cannot be a model's name"),
    ],
)
def test_options_without_a_meaning_are_refused_at_once(
    digits: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        api.convert(digits, tmp_path / "x.edge", **options)  # type: ignore[arg-type]


def test_class_names_must_be_as_many_as_the_classes(digits: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"names 2 classes, output 'logits' has 10"):
        api.convert(digits, tmp_path / "x.edge", labels=names)


def test_a_folder_of_images_needs_preprocessing(digits: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        api.convert(digits, tmp_path / "x.edge", calibrate=tmp_path)
    assert "--image-size" in (caught.value.hint or "")


def test_an_unknown_target_suggests_the_nearest(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        api.convert(digits, tmp_path / "x.edge", target="cpu-x68")
    assert "did you mean 'cpu-x86'?" in (caught.value.hint or "")


def test_an_existing_output_needs_force(
    digits: Path, onnxruntime_target: str, tmp_path: Path
) -> None:
    api.convert(digits, tmp_path / "x.edge", target=onnxruntime_target)
    with pytest.raises(OutputExists):
        api.convert(digits, tmp_path / "x.edge", target=onnxruntime_target)
    api.convert(digits, tmp_path / "x.edge", target=onnxruntime_target, force=True)


def test_int8_without_calibration_data_says_what_to_pass(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        api.convert(digits, tmp_path / "x.edge", precision="int8")
    assert "--calibrate" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["model.pt2", "model.tflite", "model.keras"])
def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=f"{name} is not a"):
        api.convert(tmp_path / name, tmp_path / "x.edge")
    assert not (tmp_path / "x.edge").exists()


CONVERT = """
    import resource, signal, sys
    from edgeserve import api, errors
    limit = int(sys.argv[3])
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        api.convert(sys.argv[1], sys.argv[2], target=sys.argv[4], calibrate=sys.argv[5],
                          progress=lambda what, share: print(what, flush=True))
    except errors.EdgeServeError as error:
        print("ERROR", type(error).__name__, error, error.hint, error.exit_code)
"""


def converting(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CONVERT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("moment", ["calibrating", "comparing", "timing"])
def test_kill_9_leaves_no_bundle(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path, moment: str
) -> None:
    destination = tmp_path / "d.edge"
    with converting(str(digits), str(destination), "0", onnxruntime_target, calibration) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(moment):
                break
        child.send_signal(signal.SIGKILL)
    assert not destination.exists()
    api.convert(digits, destination, target=onnxruntime_target)
    assert [p.name for p in tmp_path.iterdir()] == ["d.edge"]


def test_a_full_disk_is_explained_and_leaves_nothing(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path
) -> None:
    destination = tmp_path / "d.edge"
    with converting(
        str(digits), str(destination), "200000", onnxruntime_target, calibration
    ) as child:
        output, _ = child.communicate(timeout=120)
    assert "ERROR WriteFailed" in output
    assert "free some space" in output
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_leaves_nothing(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with converting(
            str(digits), str(disk / "d.edge"), "0", onnxruntime_target, calibration
        ) as child:
            output, _ = child.communicate(timeout=120)
        assert "ERROR WriteFailed" in output
        assert list(disk.iterdir()) == []
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", str(disk)], check=True)
