"""Results as JSON lines and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from edgeserve.batch.answers import ResultColumn, Values
from edgeserve.batch.rows import RowName
from edgeserve.batch.sinks.files import GrowingFile

_LINE: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
Named = Sequence[tuple[RowName, Values]]


class JsonLinesSink:
    """One object a row: its name under `key`, then the columns. NaN and infinity are null."""

    def __init__(
        self, path: Path, key: str, columns: Sequence[ResultColumn], position: int
    ) -> None:
        self._key = key
        self._file = GrowingFile(path, position)

    def encode(self, rows: Named) -> bytes:
        return b"".join(json_line({self._key: name, **values}) for name, values in rows)

    def write(self, encoded: bytes) -> None:
        self._file.write(encoded)

    def commit(self, last: bool) -> int:
        return self._file.commit()

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self._file.close()


class CsvSink:
    """A header, then one record a row: vectors of a fixed length as columns `NAME_0`, `NAME_1`, …, other
    shapes as JSON in one column."""

    def __init__(
        self, path: Path, key: str, columns: Sequence[ResultColumn], position: int
    ) -> None:
        self._columns = columns
        self._file = GrowingFile(path, position)
        if not position:
            self._file.write(_record([key, *_header(columns)]))

    def encode(self, rows: Named) -> bytes:
        return b"".join(self._row(name, values) for name, values in rows)

    def _row(self, name: RowName, values: Values) -> bytes:
        cells: list[Any] = [name]
        for column in self._columns:
            value = values[column.name]
            if _is_spread(column):
                cells += value.tolist() if value.dtype.kind != "f" else map(_cell, value)
            elif isinstance(value, np.ndarray | list | tuple):
                cells.append(orjson.dumps(_contiguous(value), option=_LINE).decode().rstrip("\n"))
            else:
                cells.append(_cell(value))
        return _record(cells)

    def write(self, encoded: bytes) -> None:
        self._file.write(encoded)

    def commit(self, last: bool) -> int:
        return self._file.commit()

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self._file.close()


def json_line(value: Any) -> bytes:
    """One value as a line of JSON."""
    try:
        return orjson.dumps(value, option=_LINE)
    except (orjson.JSONEncodeError, TypeError):  # arrays that are cut out of others
        return orjson.dumps({n: _contiguous(v) for n, v in value.items()}, option=_LINE)


def _contiguous(value: Any) -> Any:
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value


def _is_spread(column: ResultColumn) -> bool:
    return column.shape is not None and len(column.shape) == 1 and column.kind != "BYTES"


def _header(columns: Sequence[ResultColumn]) -> list[str]:
    names: list[str] = []
    for column in columns:
        if _is_spread(column):
            assert column.shape is not None
            names += [f"{column.name}_{i}" for i in range(column.shape[0])]
        else:
            names.append(column.name)
    return names


def _cell(value: Any) -> Any:
    """The shortest text that is the number in its own precision."""
    return str(value) if isinstance(value, np.floating) else value


def _record(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")
