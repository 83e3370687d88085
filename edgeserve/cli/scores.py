"""What `infer` reports of an answer: its outputs, and the best classes of those that are class scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgeserve.client import Answer
from edgeserve.client.tensors import json_values
from edgeserve.postprocess import Answer as SeenAnswer
from edgeserve.tensors import Array, dtype_name
from edgeserve.values import best_first

_SHOWN_VALUES: Final = 8


class Output(msgspec.Struct, frozen=True):
    """One output tensor; `data` is flat and row-major, NaN and infinity are null in JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]

    @property
    def shown(self) -> str:
        values = ", ".join(shown(v) for v in self.data[:_SHOWN_VALUES])
        return values + (", …" if len(self.data) > _SHOWN_VALUES else "")


def shown(value: Any) -> str:
    """Integers whole, however large; other numbers in six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Score(msgspec.Struct, frozen=True):
    """One of the best classes of one row of an output."""

    output: str
    row: int
    rank: int
    score: int | float
    index: int
    label: str | None = None


class Inferred(msgspec.Struct, frozen=True):
    """One answer. `elapsed_ms` is the exchange with the server, or the run of the bundle. `answers` are what the
    bundle's postprocess makes of the outputs, one an image or row."""

    model: str
    version: str
    device: str | None
    runtime: str | None
    variant: str | None
    elapsed_ms: float
    outputs: tuple[Output, ...]
    top: tuple[Score, ...]
    answers: tuple[SeenAnswer, ...] = ()


def inferred(
    answer: Answer,
    labels: Mapping[str, tuple[str, ...]],
    elapsed_ms: float,
    top: int,
    *,
    chosen: bool,
    answers: tuple[SeenAnswer, ...] = (),
) -> Inferred:
    """The report. Class scores are what has a score for each of its `labels` or, when the user has `chosen`
    to see the best, any matrix of numbers."""
    scores: list[Score] = []
    for name, array in answer.outputs.items():
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            continue
        own = labels.get(name)
        fitting = own if own is not None and len(own) == array.shape[1] else None
        if fitting is not None or chosen:
            scores += _best(name, array, top, fitting)
    where = answer.where
    return Inferred(
        model=answer.model,
        version=answer.version,
        device=where.device,
        runtime=where.runtime,
        variant=where.variant,
        elapsed_ms=elapsed_ms,
        outputs=tuple(
            Output(n, dtype_name(a.dtype), a.shape, json_values(a))
            for n, a in answer.outputs.items()
        ),
        top=tuple(scores),
        answers=answers,
    )


def _best(name: str, array: Array, top: int, labels: tuple[str, ...] | None) -> list[Score]:
    order = best_first(array)[:, :top]
    return [
        Score(name, row, rank, array[row, i].item(), int(i), labels[i] if labels else None)
        for row, picks in enumerate(order)
        for rank, i in enumerate(picks, start=1)
    ]
