"""Results as Parquet: parts while the run goes on, joined into one file at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.batch.answers import ResultColumn
from edgeserve.batch.parquet import pyarrow_parquet
from edgeserve.batch.sinks.files import resumable
from edgeserve.batch.sinks.text import Named
from edgeserve.errors import UsageError

# A part is written when it holds so much, or is so old, since a kill loses it: soon at first, and in a long run
# after a share of its time, so that there are not too many.
_PART_BYTES: Final = 32 << 20
_PART_SHARE: Final = 0.05
_PART_S: Final = (0.5, 30.0)
_GROUP_ROWS: Final = 65536


class ParquetSink:
    """Columns of numbers, texts or (nested) lists. The parts are in the folder `NAME.parts`."""

    def __init__(
        self, path: Path, key: str, columns: Sequence[ResultColumn], position: int, texts: bool
    ) -> None:
        """`position` is the number of committed parts, `texts` whether rows have file names."""
        self._pa, self._parquet = pyarrow_parquet("writing Parquet")
        self._path = path
        self._key = key
        self._columns = columns
        pa = self._pa
        fields = [pa.field(key, pa.string() if texts else pa.int64())]
        fields += [pa.field(c.name, _type(pa, c)) for c in columns]
        self._schema = pa.schema(fields)
        self._parts = path.with_name(f"{path.name}.parts")
        self._written = position
        self._batches: list[Any] = []
        self._bytes = 0
        self._opened = self._since = time.monotonic()
        # A kill may come between the joining and the end of the run.
        self._joined = position > 0 and not self._parts.exists() and path.exists()
        if not self._joined:
            self._clean(position)

    def _clean(self, position: int) -> None:
        kept = [self._part(i) for i in range(position)]
        names = {part.name for part in kept}
        with resumable(self._parts):
            self._parts.mkdir(parents=True, exist_ok=True)
            if not position:
                self._path.unlink(missing_ok=True)
            for stale in self._parts.iterdir():
                if stale.name not in names:
                    stale.unlink()
        missing = next((part for part in kept if not part.is_file()), None)
        if missing is not None:
            raise UsageError(
                f"{missing} is missing",
                cause="it was written before",
                hint="--force starts again",
            )

    def _part(self, index: int) -> Path:
        return self._parts / f"part-{index:06}.parquet"

    def encode(self, rows: Named) -> Any:
        pa = self._pa
        arrays = [pa.array([name for name, _ in rows], self._schema.field(0).type)]
        for column, field in zip(self._columns, list(self._schema)[1:], strict=True):
            arrays.append(_array(pa, [values[column.name] for _, values in rows], field.type))
        return pa.record_batch(arrays, schema=self._schema)

    def write(self, encoded: Any) -> None:
        if encoded.num_rows:
            self._batches.append(encoded)
            self._bytes += encoded.nbytes

    def commit(self, last: bool) -> int | None:
        now = time.monotonic()
        longest = min(_PART_S[1], max(_PART_S[0], _PART_SHARE * (now - self._opened)))
        due = last or self._bytes > _PART_BYTES or now - self._since > longest
        if not due:
            return None
        if self._batches:
            part = self._part(self._written)
            temporary = part.with_suffix(".tmp")
            with resumable(part):
                table = self._pa.Table.from_batches(self._batches, self._schema)
                with temporary.open("wb") as file:
                    self._parquet.write_table(table, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(part)
            self._written += 1
            self._batches, self._bytes, self._since = [], 0, time.monotonic()
        return self._written

    def finish(self) -> None:
        """Join the parts; may be done again where it was interrupted."""
        if self._joined:
            return
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with resumable(self._path):
            with (
                temporary.open("wb") as file,
                self._parquet.ParquetWriter(file, self._schema) as writer,
            ):
                for index in range(self._written):
                    for group in self._groups(self._part(index)):
                        writer.write_table(group)
            temporary.replace(self._path)
            joined = self._parts.with_name(f"{self._parts.name}.joined")
            self._parts.rename(joined)
            shutil.rmtree(joined)

    def _groups(self, part: Path) -> list[Any]:
        # A part is bounded by what was in memory when it was written.
        table = self._parquet.read_table(part, schema=self._schema)
        return [table.slice(start, _GROUP_ROWS) for start in range(0, table.num_rows, _GROUP_ROWS)]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.with_name(f"{self._path.name}.tmp").unlink()


def _type(pa: Any, column: ResultColumn) -> Any:
    scored = pa.struct({"label": pa.string(), "score": pa.float64(), "index": pa.int64()})
    box = pa.struct([*scored, pa.field("box", pa.list_(pa.float64()))])
    sizes = [pa.field("width", pa.int64()), pa.field("height", pa.int64())]
    known = {
        "classes": pa.list_(scored),
        "boxes": pa.list_(box),
        "mask": pa.struct(
            [*sizes, pa.field("png", pa.string()), pa.field("classes", pa.list_(scored))]
        ),
        "embedding": pa.list_(pa.float64()),
        "BOOL": pa.bool_(),
        "FP16": pa.float32(),
        "BF16": pa.float32(),
        "FP32": pa.float32(),
        "FP64": pa.float64(),
        "BYTES": pa.string(),
    }
    found = known.get(column.kind)
    if found is None:
        found = pa.from_numpy_dtype(np.dtype(column.kind.lower()))
    for _ in range(column.rank):
        found = pa.list_(found)
    return found


def _array(pa: Any, values: list[Any], kind: Any) -> Any:
    """Rows of one shape go without a Python object per number."""
    first = values[0] if values else None
    if isinstance(first, np.ndarray) and all(v.shape == first.shape for v in values):
        stacked = np.stack(values)
        if stacked.dtype == np.float16:
            stacked = stacked.astype(np.float32)
        array = pa.array(stacked.reshape(-1))
        count = len(values)
        lengths = stacked.shape[1:]
        for axis in range(len(lengths) - 1, -1, -1):
            lists = count * int(np.prod(lengths[:axis], dtype=np.int64))
            offsets = np.arange(lists + 1, dtype=np.int32) * lengths[axis]
            array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array)
        return array
    plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    return pa.array(plain, kind)
