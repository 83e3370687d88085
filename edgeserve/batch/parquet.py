"""pyarrow, imported when a Parquet file is read or written."""

from __future__ import annotations

from typing import Any

from edgeserve.errors import DependencyMissing


def pyarrow_parquet(needed_for: str) -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet. Raises DependencyMissing."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DependencyMissing("pyarrow", needed_for=needed_for, extra="parquet") from None
    return pa, parquet
