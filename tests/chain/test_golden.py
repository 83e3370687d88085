"""The error measure of the golden check."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, relative_rms_error
from edgeserve.errors import CheckFailed
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 20),
        elements=st.floats(-1e6, 1e6, width=32).filter(lambda v: v != 0),
    ),
    st.floats(1e-4, 1.0),
)
def test_a_scaled_copy_is_off_by_its_scale(reference: np.ndarray, share: float) -> None:
    wide = reference.astype(np.float64)
    assert relative_rms_error(wide, wide * (1 + share)) == pytest.approx(share, rel=1e-6)
    assert relative_rms_error(reference, reference) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_outputs_are_infinitely_wrong(bad: float) -> None:
    assert math.isinf(relative_rms_error(np.ones(3), np.array([1.0, bad, 1.0])))


def test_non_finite_references_are_left_out() -> None:
    assert relative_rms_error(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) == 0.0


def test_another_shape_is_infinitely_wrong() -> None:
    assert math.isinf(relative_rms_error(np.ones(3), np.ones(4)))


def test_texts_are_equal_or_wrong() -> None:
    a = np.array([b"cat"], object)
    assert relative_rms_error(a, a) == 0.0
    assert math.isinf(relative_rms_error(a, np.array([b"dog"], object)))


@pytest.mark.parametrize("position", [1, 2], ids=["token", "padding"])
def test_numbers_of_padding_may_be_anything(tmp_path: Path, position: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "tokens",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 2]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (
            TensorSpec("x", "FP32", ("batch", 3, 2)),
            TensorSpec("attention_mask", "INT64", ("batch", 3)),
        ),
        (TensorSpec("y", "FP32", ("batch", 3, 2)),),
        max_batch=8,
    )
    inputs = {"x": np.ones((1, 3, 2), np.float32), "attention_mask": np.array([[1, 1, 0]])}
    golden = np.ones((1, 3, 2), np.float32)
    golden[0, position] = 7.0
    path = write_bundle(tmp_path, "tokens", model, interface, inputs, {"y": golden})
    if position == 2:
        with Chain(Bundle.open(path)) as chain:
            assert chain.candidate.variant == "onnx-fp32"
    else:
        with pytest.raises(CheckFailed):
            Chain(Bundle.open(path))
