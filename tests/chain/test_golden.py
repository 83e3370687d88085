"""The error measure of the golden check."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.chain import relative_rms_error


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
