"""Reading calibration requests: an .npz of arrays called `INDEX/INPUT`, one request an index.

Standard library only at module level, like the converters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requests(file: Path) -> Iterator[dict[str, Any]]:
    """The requests in order, each a dictionary of arrays by input name."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        names: dict[int, list[str]] = {}
        for key in arrays.files:
            index, _, name = key.partition("/")
            names.setdefault(int(index), []).append(name)
        for index in sorted(names):
            yield {name: arrays[f"{index}/{name}"] for name in names[index]}
