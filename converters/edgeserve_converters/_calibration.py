"""Reading calibration requests: an .npz of arrays called `INDEX/INPUT`, one request an index.

Standard library only at module level, like the converters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Requests:
    """The requests in order, each a dictionary of arrays by input name.

    They are read whenever they are iterated over, one at a time: memory does not grow with their number.
    """

    def __init__(self, file: Path) -> None:
        import numpy as np

        self._file = file
        self._names: dict[int, list[str]] = {}
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                index, _, name = key.partition("/")
                self._names.setdefault(int(index), []).append(name)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        with np.load(self._file, allow_pickle=False) as arrays:
            for index in sorted(self._names):
                yield {name: arrays[f"{index}/{name}"] for name in self._names[index]}
