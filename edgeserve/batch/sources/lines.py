"""Rows of text files: CSV with a header, and JSON lines. One line is in memory at a time, up to a bound."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from edgeserve.batch.rows import DecodedRow, Portion, RowName, RowShapes, Unread
from edgeserve.batch.sources.base import SourceIdentity, file_identity
from edgeserve.batch.sources.columns import InputColumns, TableColumns, elements, table_columns
from edgeserve.errors import DataError, InvalidInput, quoted
from edgeserve.tensors import Array, Interface, Tensors
from edgeserve.values import checked

LONGEST_LINE: Final = 64 << 20
_BUFFER: Final = 1 << 20
_Value = Any


class _TextFile:
    """A file that is read forward, and how far it is read."""

    key = "row"
    total: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = max(1, _size(path))
        self._read = 0

    def identity(self) -> SourceIdentity:
        return file_identity(self._path)

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb", buffering=_BUFFER)
        except OSError as error:
            raise DataError(f"{self._path} cannot be read", cause=error.strerror) from None

    def _lines(self, file: BinaryIO) -> Iterator[bytes | None]:
        """The lines; None for one that is longer than the bound, which is skipped. Raises DataError."""
        try:
            while line := file.readline(LONGEST_LINE):
                self._read += len(line)
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    while rest := file.readline(_BUFFER):
                        self._read += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    yield None
                else:
                    yield line
        except OSError as error:
            raise DataError(f"{self._path} cannot be read", cause=str(error)) from None

    def _portions(
        self, values: Iterator[_Value], skip: int, size: Callable[[], int]
    ) -> Iterator[Portion]:
        row = sum(1 for _ in islice(values, skip))
        if row < skip:
            raise DataError(f"{self._path} has {row} rows, of which {skip} were read before")
        number = 0
        while found := list(islice(values, size())):
            yield Portion(
                number, range(row, row + len(found)), found, min(1.0, self._read / self._size)
            )
            number, row = number + 1, row + len(found)


class JsonLines(_TextFile):
    """One JSON value a line: an object of values by input name, or the value of the only input."""

    remarks: tuple[str, ...] = ()

    def __init__(self, path: Path, interface: Interface) -> None:
        super().__init__(path)
        self._shapes = RowShapes(interface)

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        with self._open() as file:
            yield from self._portions(self._values(file), skip, size)

    def _values(self, file: BinaryIO) -> Iterator[_Value]:
        for number, line in enumerate(self._lines(file)):
            if line is None:
                yield _TOO_LONG
            else:
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                if not text.isspace():
                    yield text

    def decode(self, name: RowName, value: _Value) -> DecodedRow:
        if isinstance(value, Unread):
            raise value.error
        document = _json(value, "the line")
        if isinstance(document, dict):
            return DecodedRow(self._shapes.named(document))
        return DecodedRow(self._shapes.lone(document))


class CsvTable(_TextFile):
    """A header, then one row a record, which a quoted line break may spread over several lines."""

    def __init__(self, path: Path, interface: Interface) -> None:
        super().__init__(path)
        csv.field_size_limit(LONGEST_LINE)
        self._cut = False  # whether a line of the record at hand was too long
        with self._open() as file:
            header = next(self._records(file), None)
        self._read = 0
        if header is None or isinstance(header, Unread):
            raise DataError(f"{path} has no header", hint="its first line names the columns")
        self._width = len(header)
        self._columns: TableColumns = table_columns(
            str(path), [_valid(h.strip()) for h in header], interface
        )
        self.remarks = self._columns.remarks
        self._header = [_valid(name) for name in header]
        self._shapes = RowShapes(interface)
        self._readers = [(c, _reader(c, interface)) for c in self._columns.inputs]

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        with self._open() as file:
            records = self._records(file)
            next(records, None)
            yield from self._portions(records, skip, size)

    def _records(self, file: BinaryIO) -> Iterator[_Value]:
        """The records that are not empty; Unread in place of one that cannot be parsed."""
        reader = csv.reader(self._texts(file))
        while True:
            try:
                record: _Value = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record = Unread(InvalidInput("the row is not valid CSV", cause=str(error)))
            if self._cut:
                self._cut, record = False, _TOO_LONG
            if record:
                yield record

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        for number, line in enumerate(self._lines(file)):
            if line is None:
                self._cut = True
                line = b"too long\n"
            # Bytes that are not UTF-8 stay what they are in a text, and are an error in a number.
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if number == 0 else text

    def decode(self, name: RowName, value: _Value) -> DecodedRow:
        if isinstance(value, Unread):
            raise value.error
        if len(value) != self._width:
            raise InvalidInput(f"the row has {len(value)} cells, the header has {self._width}")
        inputs: Tensors = {}
        for columns, read in self._readers:
            spec = columns.spec
            cells = [value[p] for p in columns.positions]
            try:
                inputs[spec.name] = self._shapes.of(spec, read(cells))
            except (ValueError, OverflowError):
                raise self._misfit(columns, cells) from None
        return DecodedRow(inputs)

    def _misfit(self, columns: InputColumns, cells: list[str]) -> InvalidInput:
        """Names the first cell that is at fault."""
        read = _CELLS.get(columns.spec.numpy_dtype.kind, float)
        for position, cell in zip(columns.positions, cells, strict=True):
            try:
                checked([read(cell)], columns.spec.dtype)
            except (ValueError, OverflowError):
                what = quoted(cell) if cell else "an empty cell"
                return InvalidInput(
                    f"column '{self._header[position]}': expected {columns.spec.dtype}, got {what}"
                )
        return InvalidInput(f"input '{columns.spec.name}': the cells do not fit")


def _reader(columns: InputColumns, interface: Interface) -> Callable[[list[str]], Array | Any]:
    """What makes the cells of one input an array or plain values. Raises ValueError, InvalidInput."""
    spec = columns.spec
    if columns.whole and elements(spec, interface) != 1:
        return lambda cells: _json(cells[0].encode("utf-8", "surrogateescape"), "the cell")
    cell = _CELLS.get(spec.numpy_dtype.kind, float)

    def read(cells: list[str]) -> Array:
        return checked(list(map(cell, cells)), spec.dtype)

    return read


def _valid(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _whole(cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        number = float(cell)
        if not number.is_integer():
            raise ValueError(cell) from None
        return int(number)


def _truth(cell: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    found = known.get(cell.strip().lower())
    if found is None:
        raise ValueError(cell)
    return found


def _text(cell: str) -> bytes:
    return cell.encode("utf-8", "surrogateescape")


_CELLS: Final[dict[str, Callable[[str], Any]]] = {
    "i": _whole,
    "u": _whole,
    "b": _truth,
    "O": _text,
}
_TOO_LONG: Final = Unread(InvalidInput(f"the line is longer than {LONGEST_LINE >> 20} MiB"))


def _json(text: bytes, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:  # NaN, infinities and large integers, as Python writes them
            return json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidInput(f"{what} is not valid JSON", cause=str(error)) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read", cause=error.strerror) from None
