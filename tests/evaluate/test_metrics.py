"""Fidelity and accuracy against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.evaluate import class_scores, fidelity, top1_accuracy
from edgeserve.tensors import Interface, TensorSpec

SCORES = Interface(
    (TensorSpec("x", "FP32", ("n", 2)),), (TensorSpec("y", "FP32", ("n", 4)),), max_batch=8
)
TWO = Interface(
    (TensorSpec("x", "FP32", (1, 2)),),
    (TensorSpec("a", "FP32", (1, 3)), TensorSpec("b", "INT64", (1,))),
)


def outputs(seed: int, rows: int = 5) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"y": generator.normal(size=(1, 4)).astype(np.float32)} for _ in range(rows)]


def test_identical_outputs_are_perfect() -> None:
    found = fidelity(SCORES, outputs(0), outputs(0))
    assert (found.top1_agreement, found.sqnr_db, found.max_abs_error) == (1.0, 200.0, 0.0)
    assert found.cosine == pytest.approx(1.0)


@given(st.floats(0.001, 0.5))
def test_sqnr_and_cosine_follow_their_definitions(share: float) -> None:
    reference = outputs(1)
    scaled = [{"y": (o["y"].astype(np.float64) * (1 + share))} for o in reference]
    found = fidelity(SCORES, reference, scaled)
    assert found.sqnr_db == pytest.approx(-20 * np.log10(share), abs=1e-3)
    assert found.cosine == pytest.approx(1.0)
    assert found.top1_agreement == 1.0


def test_non_finite_outputs_are_the_worst_there_is() -> None:
    broken = [{"y": np.full((1, 4), np.nan, np.float32)} for _ in range(5)]
    found = fidelity(SCORES, outputs(0), broken)
    assert found.sqnr_db == -200.0
    assert found.cosine == 0.0


def test_agreement_counts_the_highest_score() -> None:
    reference = [{"y": np.float32([[0, 1, 0, 0]])}, {"y": np.float32([[1, 0, 0, 0]])}]
    other = [{"y": np.float32([[0, 9, 0, 0]])}, {"y": np.float32([[0, 0, 1, 0]])}]
    assert fidelity(SCORES, reference, other).top1_agreement == 0.5


def test_several_outputs_count_together_and_have_no_class_scores() -> None:
    assert class_scores(TWO) is None
    reference = [{"a": np.float32([[1, 2, 3]]), "b": np.int64([1])}]
    assert fidelity(TWO, reference, reference).top1_agreement is None


def test_accuracy_is_the_share_of_right_answers() -> None:
    scores = [np.float32([[0, 1]]), np.float32([[1, 0]]), np.float32([[0, 1]])]
    assert top1_accuracy(scores, [1, 1, 1]) == pytest.approx(2 / 3)
