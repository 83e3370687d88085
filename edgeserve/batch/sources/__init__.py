"""Where rows come from: a folder, CSV, JSON lines, Parquet, or one array."""

from __future__ import annotations

from pathlib import Path

from edgeserve.batch.sources.base import RowSource, SourceIdentity
from edgeserve.errors import DataError, UsageError
from edgeserve.preprocess import ImageReader
from edgeserve.tensors import Interface

__all__ = ["RowSource", "SourceIdentity", "open_source"]


def open_source(path: Path, interface: Interface, reader: ImageReader | None) -> RowSource:
    """The rows of a path, by its suffix. Raises DataError, UsageError, DependencyMissing."""
    if path.is_dir():
        from edgeserve.batch.sources.folder import Folder

        return Folder(path, interface, reader)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        from edgeserve.batch.sources.lines import JsonLines

        return JsonLines(path, interface)
    if suffix == ".csv":
        from edgeserve.batch.sources.lines import CsvTable

        return CsvTable(path, interface)
    if suffix == ".parquet":
        from edgeserve.batch.sources.parquet import ParquetFile

        return ParquetFile(path, interface)
    if suffix == ".npy":
        from edgeserve.batch.sources.arrays import ArrayFile

        return ArrayFile(path, interface)
    raise UsageError(
        f"--batch does not read {path.name}",
        hint="use a folder, .csv, .jsonl, .parquet or .npy",
    )
