"""Where results go: JSON lines, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from edgeserve.batch.answers import ResultColumn
from edgeserve.batch.sinks.files import GrowingFile, replace, resumable
from edgeserve.batch.sinks.text import CsvSink, JsonLinesSink, Named, json_line
from edgeserve.errors import UsageError

__all__ = [
    "GrowingFile",
    "RowSink",
    "check_output",
    "json_line",
    "open_sink",
    "replace",
    "resumable",
]

_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv", ".parquet")


class RowSink(Protocol):
    """Results in the order of the rows. `encode` may be called from several threads, the rest from one."""

    def encode(self, rows: Named) -> Any: ...

    def write(self, encoded: Any) -> None: ...

    def commit(self, last: bool) -> int | None:
        """Have what is written survive a kill; the position to open the sink with again. Unless this is the
        `last` time, a sink may do so later, and return None."""
        ...

    def finish(self) -> None:
        """Everything is written and committed."""
        ...

    def close(self) -> None: ...


def check_output(path: Path) -> None:
    """Raises UsageError for a name that says no format."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"-o {path} has no known format", hint="end it with .jsonl, .csv or .parquet"
        )


def open_sink(path: Path, key: str, columns: Sequence[ResultColumn], position: int) -> RowSink:
    """The sink that continues at `position`. Raises WriteFailed, UsageError, DependencyMissing."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return CsvSink(path, key, columns, position)
    if suffix == ".parquet":
        from edgeserve.batch.sinks.parquet import ParquetSink

        return ParquetSink(path, key, columns, position, texts=key == "file")
    return JsonLinesSink(path, key, columns, position)
