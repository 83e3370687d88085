"""The classification extension: an output as its best classes, "SCORE:INDEX[:LABEL]" each.

Source: Triton's protocol/extension_classification.md, and what Triton 2.51 answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import DTYPES, Array, Interface, TensorSpec
from edgeserve.values import best_first


def check_scores(spec: TensorSpec) -> None:
    """Raise InvalidInput for an output whose type has no order to classify by."""
    if DTYPES[spec.dtype].kind not in "iuf" or spec.dtype == "BF16":
        raise InvalidInput(f"output '{spec.name}' does not hold scores to classify by")


class Classes:
    """The classes of one model's outputs, each with the names that belong to it."""

    def __init__(
        self, interface: Interface, labels: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._labels = labels or {}
        self._batched = interface.max_batch > 0
        # Without a batch dimension, neither a leading 1 nor the only dimension counts rows.
        self._rows = {
            s.name: self._batched or (len(s.shape) > 1 and s.shape[0] != 1)
            for s in interface.outputs
        }

    def best(self, name: str, scores: Array, count: int) -> Array:
        """The `count` best classes, or all if there are fewer, as BYTES: [rows, classes]; [classes] for an output
        that is not a list of rows; [0] for an empty one."""
        if not scores.size and not self._batched:
            return np.empty(0, object)
        by_rows = self._rows[name]
        rows = scores.reshape(scores.shape[0] if by_rows else 1, -1 if scores.size else 0)
        picked = best_first(rows)[:, :count]
        labels = self._labels.get(name, ())
        result = np.empty(picked.shape, object)
        write = "{}:{}".format if scores.dtype.kind in "iu" else "{:f}:{}".format
        for texts, row, picks in zip(result, rows, picked.tolist(), strict=True):
            for place, i in enumerate(picks):
                label = f":{labels[i]}" if i < len(labels) else ""
                texts[place] = (write(row[i], i) + label).encode()
        return result if by_rows else result[0]
