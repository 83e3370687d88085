"""Rows through a model: those of one shape together, and each by itself where a call fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from edgeserve.batch.models import RowModel
from edgeserve.batch.pace import RowPace
from edgeserve.batch.rows import DecodedRow, Portion, RowName
from edgeserve.batch.sources import RowSource
from edgeserve.errors import DataError, EdgeServeError, InferenceFailed, InvalidInput
from edgeserve.tensors import Tensors

# Errors that are about one row; after any other nothing can be answered.
AT_FAULT = (InvalidInput, DataError, InferenceFailed)


class FailedRow(msgspec.Struct, frozen=True):
    """A row that has no answer."""

    name: RowName
    error: EdgeServeError


class AnsweredRow(msgspec.Struct, frozen=True):
    """A row's outputs, as of a request of one row."""

    name: RowName
    row: DecodedRow
    outputs: Tensors


class RowRunner:
    """Runs portions of a source's rows on a model. May be used from several threads."""

    def __init__(self, source: RowSource, model: RowModel, pace: RowPace) -> None:
        self._source = source
        self._model = model
        self._pace = pace

    def run(self, portion: Portion) -> tuple[list[AnsweredRow], list[FailedRow]]:
        """Answers and failures, each in the order of the rows. A failure that is not of one row's making is raised."""
        began = time.perf_counter()
        rows: list[tuple[RowName, DecodedRow]] = []
        failures: list[FailedRow] = []
        for name, value in zip(portion.names, portion.values, strict=True):
            try:
                rows.append((name, self._source.decode(name, value)))
            except AT_FAULT as error:
                failures.append(FailedRow(name, error))
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:
                cause = f"{type(error).__name__}: {error}"
                failures.append(FailedRow(name, InvalidInput("the row is not valid", cause=cause)))
        nbytes = sum(a.nbytes for _, r in rows for a in r.inputs.values())
        answers: list[AnsweredRow] = []
        start = 0
        while start < len(rows):
            together = _alike(rows, start, self._pace.size)
            for answer in self._together(together):
                if isinstance(answer, FailedRow):
                    failures.append(answer)
                else:
                    answers.append(answer)
            start += len(together)
        order = {name: i for i, name in enumerate(portion.names)} if failures else {}
        failures.sort(key=lambda f: order[f.name])
        self._pace.took(len(portion.values), time.perf_counter() - began, nbytes)
        return answers, failures

    def _together(
        self, rows: Sequence[tuple[RowName, DecodedRow]]
    ) -> Iterator[AnsweredRow | FailedRow]:
        size = self._pace.size
        began = time.perf_counter()
        try:
            outputs = self._model.run([row.inputs for _, row in rows])
        except AT_FAULT as error:
            if len(rows) == 1:
                yield FailedRow(rows[0][0], error)
            else:
                apart = list(self._apart(rows))
                if not any(isinstance(row, FailedRow) for row in apart):
                    self._pace.too_large(size)
                yield from apart
            return
        self._pace.ran(size, len(rows), time.perf_counter() - began)
        if len(rows) == 1:
            yield AnsweredRow(*rows[0], outputs)
            return
        if any(not a.ndim or len(a) != len(rows) for a in outputs.values()):
            self._pace.alone()  # the rows of its answers are not those of the requests
            yield from self._apart(rows)
            return
        for i, (name, row) in enumerate(rows):
            yield AnsweredRow(name, row, {n: a[i : i + 1] for n, a in outputs.items()})

    def _apart(
        self, rows: Sequence[tuple[RowName, DecodedRow]]
    ) -> Iterator[AnsweredRow | FailedRow]:
        for name, row in rows:
            try:
                yield AnsweredRow(name, row, self._model.run([row.inputs]))
            except AT_FAULT as error:
                yield FailedRow(name, error)


def _alike(
    rows: Sequence[tuple[RowName, DecodedRow]], start: int, most: int
) -> Sequence[tuple[RowName, DecodedRow]]:
    """The rows from `start` that have the shapes of the first, up to `most`."""
    end = min(len(rows), start + most)
    first = _shapes(rows[start][1].inputs)
    for index in range(start + 1, end):
        if _shapes(rows[index][1].inputs) != first:
            return rows[start:index]
    return rows[start:end]


def _shapes(inputs: Tensors) -> list[tuple[int, ...]]:
    return [a.shape for a in inputs.values()]
