"""Class names belong to one output of a model."""

from __future__ import annotations

import pytest

from edgeserve.bundle import OutputKind
from edgeserve.bundle.labels import labelled, names_in
from edgeserve.tensors import Interface, TensorSpec

SCORES = TensorSpec("scores", "FP32", ("batch", 3))
BOXES = TensorSpec("boxes", "FP32", ("batch", 4))
IDS = TensorSpec("ids", "INT64", ("batch",))
OTHERS = TensorSpec("others", "FP32", ("batch", 3))
TEXT = TensorSpec("text", "BYTES", ("batch", 3))


@pytest.mark.parametrize(
    ("outputs", "classes", "labelled_ones"),
    [
        ((SCORES,), 3, "scores"),
        ((SCORES,), 4, "scores"),  # a name too many; there is no other output
        ((TensorSpec("y", "FP32", ("batch", "n")),), 3, "y"),
        ((TEXT,), 3, ""),
        ((BOXES, SCORES), 3, "scores"),
        ((BOXES, SCORES), 4, "boxes"),
        ((BOXES, SCORES), 5, ""),
        ((IDS, SCORES), 3, "scores"),
        ((TEXT, SCORES), 3, "scores"),
        ((SCORES, OTHERS), 3, ""),
        ((TensorSpec("flat", "FP16", (3,)), BOXES), 3, "flat"),
        ((), 3, ""),
    ],
)
def test_the_output_with_as_many_classes(
    outputs: tuple[TensorSpec, ...], classes: int, labelled_ones: str
) -> None:
    assert " ".join(labelled(Interface((), outputs), classes, {})) == labelled_ones


def test_what_is_known_to_be_scores_has_the_names() -> None:
    numbers, scores = OutputKind("numbers", ""), OutputKind("scores", "")
    both = Interface((), (SCORES, OTHERS, BOXES))
    assert labelled(both, 3, {"scores": numbers, "others": scores}) == ("others",)
    assert labelled(both, 3, {"scores": scores, "others": scores}) == ("scores", "others")
    assert labelled(both, 3, {"boxes": scores}) == ()


def test_names_are_lines() -> None:
    assert names_in("cat\r\ndog\n") == ("cat", "dog")
    assert names_in("a\u2028b\n\nc") == ("a\u2028b", "", "c")
    assert names_in("") == ()
