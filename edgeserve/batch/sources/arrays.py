"""Rows of one `.npy` file: its first axis. The file is mapped, not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeserve.batch.rows import DecodedRow, Portion, RowName, RowShapes
from edgeserve.batch.sources.base import SourceIdentity, file_identity
from edgeserve.errors import DataError
from edgeserve.tensors import Interface
from edgeserve.values import unreadable


class ArrayFile:
    """The rows of the only input's array."""

    key = "row"
    remarks: tuple[str, ...] = ()

    def __init__(self, path: Path, interface: Interface) -> None:
        self._path = path
        self._shapes = RowShapes(interface)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(f"{path} cannot be read", error) from None
        if not isinstance(mapped, np.ndarray) or not mapped.ndim:
            raise DataError(f"{path} has no axis of rows", hint="save one array, rows first")
        if len(interface.inputs) != 1:
            raise DataError(
                f"{path} is one array, the model has {len(interface.inputs)} inputs",
                hint="use a folder of .npz files, or JSON lines",
            )
        self._array = mapped.view(np.ndarray)  # slicing it costs less
        self.total: int | None = len(self._array)

    def identity(self) -> SourceIdentity:
        return file_identity(self._path)

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        number, start, total = 0, skip, len(self._array)
        while start < total:
            end = min(total, start + size())
            rows = self._array[start:end]
            yield Portion(number, range(start, end), rows, end / total)
            number, start = number + 1, end

    def decode(self, name: RowName, value: Any) -> DecodedRow:
        return DecodedRow(self._shapes.lone(np.asarray(value)))
