"""Each kind of output is judged by what it is for, and each part of one by its own scale."""

from __future__ import annotations

import numpy as np
import pytest

from edgeserve.bundle import Kind, OutputFidelity, OutputKind
from edgeserve.evaluate import fidelity
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec

X = TensorSpec("x", "FP32", ("n", 2))


def judged(
    want: Array,
    got: Array,
    kind: Kind | None = None,
    dtype: str = "FP32",
    shape: tuple[int | str, ...] | None = None,
    requests: list[Tensors] | None = None,
    axis: int = -1,
) -> OutputFidelity:
    """`want` and `got` are of all samples, stacked; each is a request with a batch axis of 1."""
    spec = TensorSpec("y", dtype, shape or ("n", *want.shape[1:]))
    inputs = (X, *(TensorSpec(n, "INT64", ("n", "t")) for n in (requests or [{}])[0]))
    kinds = {} if kind is None else {"y": OutputKind(kind, "the test says so", axis)}
    pairs = [[{"y": a[i : i + 1]} for i in range(len(a))] for a in (want, got)]
    given = requests or [{} for _ in want]
    (found,) = fidelity(Interface(inputs, (spec,)), kinds, given, *pairs).outputs
    return found


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def rounded(values: Array) -> Array:
    """As one int8 scale for the whole tensor stores it."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = (high - low) / 255
    return np.round(values / step) * step


def test_a_cosine_of_one_says_nothing_of_a_single_number() -> None:
    ages = 40 + 12 * normal(64, 1)
    lost = np.full_like(ages, 40.0) + normal(64, 1, seed=1)
    found = judged(ages, lost)
    assert found.sqnr_db == pytest.approx(0.0, abs=1.0)
    assert found.signal_db is not None
    assert found.signal_db > 10
    assert found.cosine is not None
    assert abs(found.cosine) < 0.5


def detections(layout: str) -> Array:
    """Boxes in pixels beside two scores, for 64 samples and 200 anchors."""
    centres = np.linspace(0, 640, 200)[None, None, :] + 12 * normal(64, 4, 200)
    scores = np.clip(normal(64, 2, 200, seed=1) * 0.2 - 0.1, 0, 1)
    both = np.concatenate([centres, scores], axis=1)
    if layout == "anchors last":
        return both
    if layout == "anchors first":
        return both.transpose(0, 2, 1)
    return both.reshape(64, -1)  # heads one after the other


@pytest.mark.parametrize(
    ("layout", "worst"),
    [
        ("anchors last", "y[:,4:6]"),
        ("anchors first", "y[...,4:6]"),
        ("flat", "y[:,800:1200]"),
    ],
)
def test_scores_that_boxes_drown_are_found(layout: str, worst: str) -> None:
    want = detections(layout)
    found = judged(want, rounded(want))
    assert found.cosine == pytest.approx(1.0, abs=1e-4)
    assert found.sqnr_db is not None
    assert found.sqnr_db < 3
    assert found.worst == worst
    assert found.parts[0].sqnr_db > 20  # the boxes are right


@pytest.mark.parametrize("layout", ["anchors last", "anchors first", "flat"])
def test_parts_that_keep_their_own_scale_are_fine(layout: str) -> None:
    want = detections("anchors last")
    got = np.concatenate([rounded(want[:, :4]), rounded(want[:, 4:])], axis=1)
    shape = {"anchors last": want, "anchors first": want.transpose(0, 2, 1)}
    turned = {"anchors last": got, "anchors first": got.transpose(0, 2, 1)}
    a = shape.get(layout, want.reshape(64, -1))
    b = turned.get(layout, got.reshape(64, -1))
    found = judged(a, b)
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20


def test_each_column_of_a_regression_counts() -> None:
    want = normal(64, 3) * [12.0, 8.0, 0.1] + [40.0, 170.0, 0.5]
    got = want.copy()
    got[:, 2] = 0.5
    found = judged(want, got)
    assert found.worst == "y[:,2]"
    assert found.sqnr_db == pytest.approx(0.0, abs=0.5)
    # Two of like scale are one part; one of them may be 6 dB worse than both together, not more.
    want = normal(64, 2) * [3.0, 1.0]
    got = want.copy()
    got[:, 1] += normal(64, seed=1)
    found = judged(want, got)
    assert found.worst == "y[:,1]"
    assert found.sqnr_db == pytest.approx(6.0, abs=1.5)


def test_the_argmax_of_a_regression_means_nothing() -> None:
    want = normal(64, 3) * 0.01 + 5.0
    found = judged(want, want + 1e-3 * normal(64, 3, seed=1))
    assert found.agreement is not None
    assert found.agreement < 1.0  # shown, and no bound applies to it
    assert found.sqnr_db is not None
    assert found.sqnr_db > 15


def test_scores_of_rare_events_are_not_judged_by_what_never_happens() -> None:
    """Of 80 classes three occur; the others' noise is small beside a share."""
    scores = np.full((64, 80, 50), 1e-4)
    scores[:, :3] = np.clip(normal(64, 3, 50) - 1, 0, 1)
    fine = np.round(scores * 255) / 255
    found = judged(scores, fine)
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20
    lost = judged(scores, np.zeros_like(scores))
    assert lost.sqnr_db is not None
    assert lost.sqnr_db < 4


def test_findings_that_are_damped_are_an_error_however_rare_they_are() -> None:
    """A detector's scores are nearly 0 nearly everywhere: int8 halves what is found, and nothing else."""
    random = np.random.default_rng(5)
    scores = random.random((64, 4, 500)) * 1e-3
    places = random.integers(0, 500, 64)
    scores[np.arange(64), random.integers(0, 4, 64), places] = random.uniform(0.2, 0.8, 64)
    boxes = random.random((64, 4, 500)) * 320
    damped = np.where(scores > 0.1, scores * 0.5, scores)
    found = judged(np.concatenate([boxes, scores], 1), np.concatenate([boxes, damped], 1))
    assert found.sqnr_db == pytest.approx(6.0, abs=0.3)
    assert found.worst.startswith("y[:,4")
    assert judged(scores, scores + 1e-3).sqnr_db > 20


def test_what_is_constant_is_compared_with_its_value() -> None:
    want = np.full((32, 4), 7.0)
    assert judged(want, want).sqnr_db == 200.0
    near = judged(want, want + 0.01)
    assert near.sqnr_db is not None
    assert near.sqnr_db > 30
    far = judged(want, want + 3.5)
    assert far.sqnr_db is not None
    assert far.sqnr_db < 0
    zero = np.zeros((32, 4))
    assert judged(zero, zero).sqnr_db == 200.0
    tiny = judged(zero, zero + 1e-6)
    assert tiny.sqnr_db is not None
    assert tiny.sqnr_db > 60
    wrong = judged(zero, zero + 1.0)
    assert wrong.sqnr_db is not None
    assert wrong.sqnr_db < 0


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_samples_are_compared_with_their_size_and_say_so(count: int) -> None:
    want = 40 + 12 * normal(count, 1)
    found = judged(want, want * 1.05)
    assert not found.centred
    assert found.sqnr_db == pytest.approx(26.0, abs=0.1)


def test_one_large_sample_has_a_spread_of_its_own() -> None:
    image = normal(1, 3, 16, 16)
    found = judged(image, image + 0.1 * normal(1, 3, 16, 16, seed=1))
    assert found.centred
    assert found.sqnr_db == pytest.approx(20.0, abs=1.0)


def test_whole_numbers_and_texts_count_by_equality() -> None:
    ids = np.arange(40).reshape(40, 1)
    found = judged(ids, ids + (ids % 4 == 0), dtype="INT64")
    assert (found.kind, found.agreement, found.sqnr_db) == ("ids", 0.75, None)
    large = np.array([[2**60], [2**60 + 1]])
    assert judged(large, large[::-1], dtype="INT64").agreement == 0.0
    texts = np.array([[b"cat"], ["dog"], [b"cow"], ["\u00e9"]], object)
    other = np.array([[b"cat"], ["dog"], [b"emu"], ["\u00e9"]], object)
    found = judged(texts, other, dtype="BYTES")
    assert (found.kind, found.agreement) == ("text", 0.75)
    yes = np.zeros((16, 100), bool)
    yes[:, :3] = True
    lost = judged(yes, np.zeros_like(yes), dtype="BOOL")
    assert (lost.agreement, lost.overlap) == (0.97, 0.0)


def test_decisions_of_probabilities_count_where_something_happens() -> None:
    mask = np.zeros((16, 1, 32, 32))
    mask[:, :, 4:9, 4:9] = 0.9
    found = judged(mask, mask * 0.95, "probabilities")
    assert (found.agreement, found.overlap) == (1.0, 1.0)
    lost = judged(mask, mask * 0.1, "probabilities")
    assert lost.agreement is not None
    assert lost.agreement > 0.95
    assert lost.overlap == 0.0


def test_one_score_is_yes_or_no() -> None:
    spoken = np.tile([[0.01], [0.02], [0.99]], (20, 1))
    assert judged(spoken, spoken * 0.9, "scores").agreement == 1.0
    missed = judged(spoken, spoken * 0.1, "scores")
    assert missed.agreement == pytest.approx(2 / 3)
    assert missed.overlap == 0.0


def test_class_scores_are_compared_along_their_axis() -> None:
    maps = normal(8, 5, 6, 6)
    swapped = maps[:, ::-1]
    assert judged(maps, maps * 2, "scores", axis=-3).agreement == 1.0
    assert judged(maps, swapped, "scores", axis=-3).agreement == pytest.approx(0.2, abs=0.1)


def test_scores_of_tokens_count_where_there_are_tokens() -> None:
    scores = normal(20, 6, 9)
    masks = [{"attention_mask": np.array([[1, 1, 1, 0, 0, 0]])} for _ in range(20)]
    got = scores.copy()
    got[:, 3:] = -got[:, 3:]
    shape = ("n", "t", 9)
    assert judged(scores, got, "scores", requests=masks, shape=shape).agreement == 1.0
    got[:, 0] = -got[:, 0]
    found = judged(scores, got, "scores", requests=masks, shape=shape)
    assert found.agreement == pytest.approx(2 / 3)


def test_embeddings_have_a_cosine_and_an_error() -> None:
    vectors = normal(64, 384)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = judged(vectors, vectors + 0.002 * normal(64, 384, seed=1), "embedding")
    assert found.cosine is not None
    assert found.cosine > 0.99
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20
    # All alike but for a little: the cosine sees nothing of it, the error does.
    alike = 1 + 0.01 * normal(64, 384)
    lost = judged(alike, np.ones_like(alike), "embedding")
    assert lost.cosine is not None
    assert lost.cosine > 0.999
    assert lost.sqnr_db is not None
    assert lost.sqnr_db < 1


def test_another_number_of_rows_is_counted_and_not_compared() -> None:
    spec = TensorSpec("y", "FP32", ("found", 4))
    rows = [normal(3 + i % 4, 4, seed=i) for i in range(40)]
    want = [{"y": r} for r in rows]
    got = [{"y": r[:-1] if i % 10 == 0 else r} for i, r in enumerate(rows)]
    (found,) = fidelity(Interface((X,), (spec,)), {}, [{}] * 40, want, got).outputs
    assert (found.mismatched, found.sqnr_db) == (4, 200.0)
    empty = [{"y": np.zeros((0, 4))} for _ in range(3)]
    (found,) = fidelity(Interface((X,), (spec,)), {}, [{}] * 3, empty, empty).outputs
    assert (found.mismatched, found.sqnr_db) == (0, 200.0)


@pytest.mark.parametrize(
    ("got", "fine"), [(-np.inf, True), (-3e38, True), (0.0, False), (np.inf, False)]
)
def test_infinities_stay_huge(got: float, fine: bool) -> None:
    want = normal(16, 4)
    want[:, 0] = -np.inf
    other = want.copy()
    other[:, 0] = got
    found = judged(want, other)
    assert (found.sqnr_db == 200.0) is fine


def test_nan_of_the_reference_does_not_count() -> None:
    want = normal(16, 4)
    want[3] = np.nan
    other = np.nan_to_num(want, nan=5.0)
    assert judged(want, other).sqnr_db == 200.0
