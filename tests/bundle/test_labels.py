"""Class names belong to one output of a model."""

from __future__ import annotations

import pytest

from edgeserve.bundle.labels import labelled, names_in
from edgeserve.tensors import Interface, TensorSpec

SCORES = TensorSpec("scores", "FP32", ("batch", 3))
BOXES = TensorSpec("boxes", "FP32", ("batch", 4))
IDS = TensorSpec("ids", "INT64", ("batch",))
TEXT = TensorSpec("text", "BYTES", ("batch", 3))


@pytest.mark.parametrize(
    ("outputs", "classes", "output"),
    [
        ((SCORES,), 3, "scores"),
        ((SCORES,), 4, "scores"),  # a name too many; there is no other output
        ((TensorSpec("y", "FP32", ("batch", "n")),), 3, "y"),
        ((TEXT,), 3, None),
        ((BOXES, SCORES), 3, "scores"),
        ((BOXES, SCORES), 4, "boxes"),
        ((BOXES, SCORES), 5, None),
        ((IDS, SCORES), 3, "scores"),
        ((IDS, TensorSpec("only", "FP32", ("batch", 1))), 1, "only"),
        ((TEXT, SCORES), 3, "scores"),
        ((SCORES, TensorSpec("others", "FP32", ("batch", 3))), 3, None),
        ((TensorSpec("flat", "FP16", (3,)), BOXES), 3, "flat"),
        ((), 3, None),
    ],
)
def test_the_output_with_as_many_classes(
    outputs: tuple[TensorSpec, ...], classes: int, output: str | None
) -> None:
    assert labelled(Interface((), outputs), classes) == output


def test_names_are_lines() -> None:
    assert names_in("cat\r\ndog\n") == ("cat", "dog")
    assert names_in("a\u2028b\n\nc") == ("a\u2028b", "", "c")
    assert names_in("") == ()
