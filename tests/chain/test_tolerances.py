"""The golden check holds each part of each output to a tolerance of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve.bundle import Bundle, OutputTolerance, Part, PartTolerance, Variant
from edgeserve.chain.golden import check_batches, check_golden, deviation
from edgeserve.errors import CheckFailed
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.tensors import Array, Interface, TensorSpec
from tests.bundles import LINEAR, linear, linear_model, write_bundle

INTERFACE = Interface(
    (TensorSpec("x", "FP32", ("n", 1)),), (TensorSpec("y", "FP32", ("n", 6)),), max_batch=8
)
BOXES, SCORES = Part(-1, ((0, 4),)), Part(-1, ((4, 6),))


def variant(*golden: OutputTolerance) -> Variant:
    return Variant("v", "onnx", "int8", "m.onnx", (), golden_tolerance=0.1, golden=golden)


def found(tolerance: OutputTolerance, want: Array, got: Array, slack: float = 1.0) -> bool:
    requests = [{"x": np.zeros((1, 1), np.float32)}] * len(want)
    pairs = ([{"y": a[i : i + 1]} for i in range(len(a))] for a in (want, got))
    return deviation(variant(tolerance), INTERFACE, requests, *pairs, slack).is_fine


def test_each_part_has_a_tolerance_of_its_own() -> None:
    tolerance = OutputTolerance("y", (PartTolerance(BOXES, 2.0), PartTolerance(SCORES, 0.05)))
    want = np.zeros((4, 6))
    boxes, scores = want.copy(), want.copy()
    boxes[:, :4] += 1.9
    scores[:, 4:] += 0.06
    assert found(tolerance, want, boxes)
    assert not found(tolerance, want, scores)
    assert found(tolerance, want, scores, slack=2.0)


def test_what_fails_is_named() -> None:
    tolerance = OutputTolerance("y", (PartTolerance(BOXES, 2.0), PartTolerance(SCORES, 0.05)))
    want, got = np.zeros((1, 6)), np.zeros((1, 6))
    got[:, 5] = 1.0
    seen = deviation(variant(tolerance), INTERFACE, [{}], [{"y": want}], [{"y": got}])
    assert seen.cause == "output 'y[:,4:6]': RMS error 0.707, tolerated 0.05"
    assert seen.error == pytest.approx(0.1 * 0.707 / 0.05, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_wrong(bad: float) -> None:
    tolerance = OutputTolerance("y", (PartTolerance(Part(), 1e9),))
    want = np.zeros((1, 6))
    assert not found(tolerance, want, np.full((1, 6), bad))
    assert found(tolerance, np.full((1, 6), np.nan), want)


def test_shapes_and_ids_may_differ_as_often_as_they_did() -> None:
    ids = OutputTolerance("y", differing=0.25)
    want = np.arange(8).reshape(8, 1)
    got = want.copy()
    got[:2] += 1
    assert found(ids, want, got)
    got[2] += 1
    assert not found(ids, want, got)
    one = OutputTolerance("y", (PartTolerance(Part(), 1.0),), mismatched=1)
    rows = [{"y": np.zeros((2, 4))}, {"y": np.zeros((3, 4))}]
    other = [{"y": np.zeros((2, 4))}, {"y": np.zeros((2, 4))}]
    assert deviation(variant(one), INTERFACE, [{}] * 2, rows, other).is_fine
    assert not deviation(variant(one), INTERFACE, [{}] * 2, rows[::-1], rows).is_fine


def with_tolerance(path: Path, rms: float) -> Bundle:
    """The bundle, its variant's error bounded by parts."""
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes())
    part = {"part": {"spans": [[0, 3]]}, "rms": rms}
    manifest["variants"][0]["golden"] = [{"name": "y", "parts": [part]}]
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return Bundle.open(path)


@pytest.mark.parametrize(("rms", "fine"), [(0.2, True), (0.05, False)])
def test_a_manifest_with_parts_is_checked_by_them(tmp_path: Path, rms: float, fine: bool) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    path = write_bundle(
        tmp_path, "linear", linear_model(), LINEAR, {"x": x}, {"y": linear(x) + np.float32(0.1)}
    )
    bundle = with_tolerance(path, rms)
    session = runtime("onnxruntime").load(
        bundle.variant_files("onnx-fp32"), "cpu", LoadOptions(threads=1)
    )
    try:
        if fine:
            assert check_golden(bundle, session, "onnx-fp32") == pytest.approx(1e-3 / 2, rel=1e-3)
            check_batches(bundle, session, "onnx-fp32", [2, 4, 8])
        else:
            with pytest.raises(CheckFailed, match=r"tolerated 0\.05"):
                check_golden(bundle, session, "onnx-fp32")
    finally:
        session.close()


def test_scalar_inputs_of_golden_samples_stay_arrays(tmp_path: Path) -> None:
    """onnxruntime refuses numpy's scalars."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"], name="scale")],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", (2,)), TensorSpec("k", "FP32", ())),
        (TensorSpec("y", "FP32", (2,)),),
    )
    inputs = {"x": np.ones((3, 2), np.float32), "k": np.float32([1, 2, 3])}
    outputs = {"y": inputs["k"][:, None] * inputs["x"]}
    bundle = Bundle.open(write_bundle(tmp_path, "scaled", made, interface, inputs, outputs))
    session = runtime("onnxruntime").load(
        bundle.variant_files("onnx-fp32"), "cpu", LoadOptions(threads=1)
    )
    try:
        assert check_golden(bundle, session, "onnx-fp32") == 0.0
    finally:
        session.close()
