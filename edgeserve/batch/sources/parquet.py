"""Rows of a Parquet file, read by row groups through pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.batch.parquet import pyarrow_parquet
from edgeserve.batch.rows import DecodedRow, Portion, RowName, RowShapes
from edgeserve.batch.sources.base import SourceIdentity, file_identity
from edgeserve.batch.sources.columns import InputColumns, table_columns
from edgeserve.errors import DataError, InvalidInput
from edgeserve.tensors import Interface, Tensors

_READ_ROWS: Final = 1024


class ParquetFile:
    """Columns by input name, of numbers, texts or lists; or one column per element."""

    key = "row"

    def __init__(self, path: Path, interface: Interface) -> None:
        self._path = path
        self._shapes = RowShapes(interface)
        self._pa, parquet = pyarrow_parquet("reading Parquet")
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except (OSError, self._pa.ArrowException) as error:
            raise DataError(f"{path} is not a readable Parquet file", cause=str(error)) from None
        names = list(self._file.schema_arrow.names)
        self._columns = table_columns(str(path), names, interface)
        self._wanted = [names[p] for c in self._columns.inputs for p in c.positions]
        self.total: int | None = self._file.metadata.num_rows
        self.remarks = self._columns.remarks

    def identity(self) -> SourceIdentity:
        return file_identity(self._path)

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        number, row, total = 0, skip, max(1, self.total or 0)
        for values in self._pieces(skip):
            start = 0
            while start < len(values):
                part = values[start : start + size()]
                start += len(part)
                names = range(row, row + len(part))
                row += len(part)
                yield Portion(number, names, part, row / total)
                number += 1

    def _pieces(self, skip: int) -> Iterator[list[list[Any]]]:
        """Rows after the first `skip`, in the pieces that pyarrow reads; whole row groups are passed over."""
        groups: list[int] = []
        first = 0
        for index in range(self._file.metadata.num_row_groups):
            rows = self._file.metadata.row_group(index).num_rows
            if groups or skip < first + rows:
                groups.append(index)
            else:
                first += rows
        if not groups:
            return
        left = skip - first
        try:
            for batch in self._file.iter_batches(
                batch_size=_READ_ROWS, row_groups=groups, columns=self._wanted, use_threads=False
            ):
                passed = min(left, batch.num_rows)
                left -= passed
                if passed < batch.num_rows:
                    yield self._rows(batch.slice(passed))
        except (OSError, self._pa.ArrowException) as error:
            raise DataError(f"{self._path} cannot be read further", cause=str(error)) from None

    def _rows(self, batch: Any) -> list[list[Any]]:
        columns = [self._column(batch.column(name)) for name in self._wanted]
        return [list(row) for row in zip(*columns, strict=True)]

    def _column(self, column: Any) -> Sequence[Any]:
        """The values of the rows: arrays of lists of numbers, else Python's."""
        types, kind = self._pa.types, column.type
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if lists and not column.null_count and _is_number(types, kind.value_type):
            flat = column.flatten()
            if not flat.null_count:
                numbers = flat.to_numpy(zero_copy_only=False)
                if types.is_fixed_size_list(kind):
                    return list(numbers.reshape(len(column), kind.list_size))
                offsets = column.offsets.to_numpy()
                return np.split(numbers, offsets[1:-1] - offsets[0])
        values: list[Any] = column.to_pylist()
        return values

    def decode(self, name: RowName, value: Any) -> DecodedRow:
        inputs: Tensors = {}
        position = 0
        for columns in self._columns.inputs:
            cells = value[position : position + len(columns.positions)]
            position += len(cells)
            inputs[columns.spec.name] = self._shapes.of(columns.spec, _value(columns, cells))
        return DecodedRow(inputs)


def _value(columns: InputColumns, cells: list[Any]) -> Any:
    for cell in cells:
        if cell is None:
            raise InvalidInput(f"input '{columns.spec.name}': the row has a null")
    return cells[0] if columns.whole else cells


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))
