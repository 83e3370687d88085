"""What `infer` reports of an answer: its outputs, and the best classes of those that are class scores."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.client import Answer
from edgeserve.client.tensors import json_values
from edgeserve.tensors import Array, dtype_name

_SHOWN_VALUES: Final = 8


class Output(msgspec.Struct, frozen=True):
    """One output tensor; `data` is flat and row-major, NaN and infinity are null in JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]

    @property
    def shown(self) -> str:
        values = ", ".join(
            f"{v:.6g}" if isinstance(v, float) else str(v) for v in self.data[:_SHOWN_VALUES]
        )
        return values + (", …" if len(self.data) > _SHOWN_VALUES else "")


class Score(msgspec.Struct, frozen=True):
    """One of the best classes of one row of an output."""

    output: str
    row: int
    rank: int
    score: float
    index: int
    label: str | None = None


class Inferred(msgspec.Struct, frozen=True):
    """One answer. `elapsed_ms` is the exchange with the server, or the run of the bundle."""

    model: str
    version: str
    device: str | None
    runtime: str | None
    variant: str | None
    elapsed_ms: float
    outputs: tuple[Output, ...]
    top: tuple[Score, ...]


def inferred(
    answer: Answer, labels: tuple[str, ...] | None, elapsed_ms: float, top: int, *, chosen: bool
) -> Inferred:
    """The report. Class scores are what has a score for each label or, when the user has `chosen` to see
    the best, any matrix of numbers."""
    scores: list[Score] = []
    for name, array in answer.outputs.items():
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            continue
        fitting = labels if labels is not None and len(labels) == array.shape[1] else None
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
    )


def _best(name: str, array: Array, top: int, labels: tuple[str, ...] | None) -> list[Score]:
    order = np.argsort(-array.astype(np.float64), axis=1, kind="stable")[:, :top]
    return [
        Score(name, row, rank, float(array[row, i]), int(i), labels[i] if labels else None)
        for row, picks in enumerate(order)
        for rank, i in enumerate(picks, start=1)
    ]
