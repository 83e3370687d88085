"""Answers for people, as columns: classes, boxes, a map of classes, or a vector."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgeserve.batch.answers import ResultColumn, Values
from edgeserve.batch.running import AnsweredRow
from edgeserve.bundle import Classification, Detection, Segmentation
from edgeserve.errors import UsageError
from edgeserve.postprocess import AnswerOptions, ClassesAnswer, Postprocessor

_PARTS: Final = (("label", "BYTES"), ("score", "FP64"), ("index", "INT64"))


class LabelForm:
    """What the bundle's postprocess makes of a row. A `flat` form has columns of single values where it can: the
    best classes as `label`, `score`, `index`, or `label_1`, … if there are several."""

    def __init__(self, postprocessor: Postprocessor, top: int | None, *, flat: bool) -> None:
        """Raises UsageError for a model without a postprocess."""
        how = postprocessor.how
        if how is None:
            raise UsageError(
                "--as labels: the model has neither labels nor a postprocess",
                hint="leave it out, or convert the model with --labels or --postprocess",
            )
        self._postprocessor = postprocessor
        self._options = AnswerOptions(top_k=top)
        self.outputs = postprocessor.outputs
        self.columns: tuple[ResultColumn, ...]
        if flat and isinstance(how, Classification):
            count = top or how.top_k
            self._ranks = [
                tuple(f"{part}_{rank}" if count > 1 else part for part, _ in _PARTS)
                for rank in range(1, count + 1)
            ]
            self.columns = tuple(
                ResultColumn(name, kind, 0, ())
                for names in self._ranks
                for name, (_, kind) in zip(names, _PARTS, strict=True)
            )
            return
        self._ranks = []
        kind = "classes"
        if isinstance(how, Detection):
            kind = "boxes"
        elif isinstance(how, Segmentation):
            kind = "mask"
        elif not isinstance(how, Classification):
            kind = "embedding"
        self.columns = (ResultColumn(kind, kind, 0, None),)

    def values(self, answer: AnsweredRow) -> Values:
        (found,) = self._postprocessor.answers(answer.outputs, 1, [answer.row.frame], self._options)
        if not self._ranks or not isinstance(found, ClassesAnswer):
            plain: dict[str, Any] = msgspec.to_builtins(found)
            return plain
        values: dict[str, Any] = {column.name: None for column in self.columns}
        for names, scored in zip(self._ranks, found.classes, strict=False):
            values.update(zip(names, (scored.label, scored.score, scored.index), strict=True))
        return values
