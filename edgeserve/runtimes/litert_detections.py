"""TFLite's own detection head fills only the first rows of its outputs. The others hold what was in that memory before:
they are cleared, so that the same input gives the same answer, and nothing of the process leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.tensors import Array

_HEAD: Final = "TFLite_Detection_PostProcess"

# The indices of its outputs: boxes, classes, scores, count.
DetectionHead = tuple[int, int, int, int]


def detection_heads(interpreter: Any) -> tuple[DetectionHead, ...]:
    """The heads of a file whose tensors are allocated; most files have none."""
    return tuple(
        (int(boxes), int(classes), int(scores), int(count))
        for op in interpreter._get_ops_details()
        if op["op_name"] == _HEAD
        for boxes, classes, scores, count in [op["outputs"]]
    )


def clear_unused(arrays: Mapping[int, Array], heads: tuple[DetectionHead, ...]) -> None:
    """Set to zero what is past the count; `arrays` are outputs by index."""
    for *lists, counter in heads:
        count = arrays.get(counter)
        if count is None or not count.size:
            continue
        used = max(0, int(count.reshape(-1)[0]))
        for index in lists:
            if index in arrays:
                arrays[index][:, used:] = 0
