"""Fidelity and accuracy against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.bundle import Fidelity
from edgeserve.evaluate import class_scores, top1_accuracy
from edgeserve.evaluate import fidelity as fidelity_of
from edgeserve.tensors import Interface, Tensors, TensorSpec

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


def fidelity(interface: Interface, reference: list[Tensors], got: list[Tensors]) -> Fidelity:
    """That of models whose inputs say nothing of padding."""
    return fidelity_of(interface, {}, [{} for _ in reference], reference, got)


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


def test_several_outputs_without_a_kind_have_no_class_scores() -> None:
    assert class_scores(TWO, {}) is None
    reference = [{"a": np.float32([[1, 2, 3]]), "b": np.int64([1])}]
    assert fidelity(TWO, reference, reference).top1_agreement is None


def test_accuracy_is_the_share_of_right_answers() -> None:
    scores = [np.float32([[0, 1]]), np.float32([[1, 0]]), np.float32([[0, 1]])]
    assert top1_accuracy(scores, [1, 1, 1]) == pytest.approx(2 / 3)


def test_what_is_computed_for_padding_does_not_count() -> None:
    interface = Interface(
        (TensorSpec("attention_mask", "INT64", ("n", "t")),),
        (TensorSpec("hidden", "FP32", ("n", "t", 2)), TensorSpec("pooled", "FP32", ("n", 2))),
    )
    requests = [{"attention_mask": np.array([[1, 1, 0]])}]
    reference = [{"hidden": np.ones((1, 3, 2), np.float32), "pooled": np.ones((1, 2), np.float32)}]
    padding = [{**reference[0], "hidden": np.float32([[[1, 1], [1, 1], [np.nan, -7]]])}]
    token = [{**reference[0], "hidden": np.float32([[[1, 1], [-1, 1], [1, 1]]])}]
    assert fidelity_of(interface, {}, requests, reference, padding).sqnr_db == 200.0
    assert fidelity_of(interface, {}, requests, reference, token).max_abs_error == 2.0
    assert fidelity_of(interface, {}, [{}], reference, padding).sqnr_db == -200.0
    nothing = [{"attention_mask": np.zeros((1, 3), np.int64)}]
    assert fidelity_of(interface, {}, nothing, reference, token).max_abs_error == 2.0
