"""Prints answers for people: classes, boxes, class maps, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgeserve.postprocess import Answer

_SHOWN: Final = 8


def print_answers(console: Any, answers: Sequence[Answer]) -> None:
    """A table for each image or row; they are numbered if there are several."""
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            console.print(f"image or row {number}", markup=False)
        _print(console, answer)


def _print(console: Any, answer: Answer) -> None:
    from edgeserve.postprocess import BoxesAnswer, ClassesAnswer, EmbeddingAnswer, MaskAnswer
    from edgeserve.tables import print_table

    if isinstance(answer, ClassesAnswer):
        rows = [(f"{c.score:.6g}", str(c.index), c.label) for c in answer.classes]
        print_table(console, ("score", "class", "label"), rows, right=("score", "class"))
    elif isinstance(answer, BoxesAnswer):
        found = [
            (f"{b.score:.6g}", str(b.index), b.label, ", ".join(f"{v:.1f}" for v in b.box))
            for b in answer.boxes
        ]
        if not found:
            console.print("nothing was found", markup=False)
            return
        print_table(
            console, ("score", "class", "label", "x0, y0, x1, y1"), found, right=("score", "class")
        )
    elif isinstance(answer, MaskAnswer):
        mask = answer.mask
        console.print(f"class map of {mask.width} x {mask.height} pixels", markup=False)
        shares = [(f"{100 * c.score:.1f} %", str(c.index), c.label) for c in mask.classes]
        print_table(console, ("pixels", "class", "label"), shares, right=("pixels", "class"))
    elif isinstance(answer, EmbeddingAnswer):
        vector = answer.embedding
        values = ", ".join(f"{v:.6g}" for v in vector[:_SHOWN])
        more = ", …" if len(vector) > _SHOWN else ""
        console.print(f"vector of {len(vector)} numbers: {values}{more}", markup=False)
