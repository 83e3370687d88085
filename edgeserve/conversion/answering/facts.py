"""What is known of a model's outputs: names, kinds, labels, and what the source answered to a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import OutputKind, Postprocess, Scale
from edgeserve.tensors import DTYPES, Array, Interface, Tensors, numbers_of_bf16

# Names of a class that is nothing, as label files have them at their beginning.
BACKGROUND: Final = frozenset({"background", "__background__", "_background_", "???", "bg"})
# Axes of colours.
_CHANNELS: Final = (1, 3, 4)


class Fit(msgspec.Struct, frozen=True):
    """A way to make an answer, and `because` of what; `notes` say what was taken for granted."""

    how: Postprocess
    because: str
    notes: tuple[str, ...] = ()


class Doubt(msgspec.Struct, frozen=True):
    """What was seen that does not decide it, and what would."""

    remark: str


Finding = Fit | Doubt | None


class OutputFacts(msgspec.Struct, frozen=True):
    """`labels` are class names, `labelled` says that samples have labels. `inputs` and `answers` are requests of one row
    to the source and what it answered. `has_graph`: kinds were read from the end of the graph.
    `scales` are those of quantized outputs."""

    interface: Interface
    kinds: Mapping[str, OutputKind]
    answers: Sequence[Tensors]
    inputs: Sequence[Tensors] = ()
    labels: tuple[str, ...] | None = None
    labelled: bool = False
    has_graph: bool = False
    scales: Mapping[str, Scale] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.interface.outputs)

    def kind(self, name: str) -> str:
        return self.kinds[name].kind if name in self.kinds else "numbers"

    def arrays(self, name: str) -> list[Array]:
        """What the source answered, quantized outputs as the numbers that they stand for."""
        found = [answer[name] for answer in self.answers if name in answer]
        if self.interface.output(name).dtype == "BF16":
            return [numbers_of_bf16(a) for a in found]
        scale = self.scales.get(name)
        if scale is None:
            return found
        return [(a.astype(np.float64) - scale.zero) * scale.scale for a in found]

    def rows(self, name: str) -> list[Array]:
        """Likewise, as a row of a batch."""
        batched = self.interface.max_batch > 0
        return [
            a[0] if a.ndim and len(a) == 1 and (batched or a.ndim > 1) else a
            for a in self.arrays(name)
        ]

    def squeezed(self, name: str, rank: int) -> list[Array] | None:
        """Rows as arrays of `rank` axes; None if one has more or fewer. Other axes of 1 are dropped, as answers do."""
        found = []
        for row in self.arrays(name):
            if self.interface.max_batch > 0 and row.ndim:
                row = row[0]
            while row.ndim > rank and row.shape[0] == 1:
                row = row[0]
            if row.ndim == rank + 1 and row.shape[-1] == 1:
                row = row[..., 0]
            if row.ndim != rank:
                return None
            found.append(row)
        return found or None

    def flat(self, name: str) -> list[Array] | None:
        """Rows as vectors; None if one has more than one axis that is, or may be, longer than 1."""
        shape = self.interface.output(name).shape
        if sum(d != 1 for d in shape[1:]) > 1:
            return None
        found = []
        for row in self.rows(name):
            if sum(d != 1 for d in row.shape) > 1:
                return None
            found.append(np.atleast_1d(row).reshape(-1))
        return found if found and len({len(r) for r in found}) == 1 else None

    def is_float(self, name: str) -> bool:
        return name in self.scales or self.interface.output(name).dtype in (
            "FP16",
            "BF16",
            "FP32",
            "FP64",
        )

    def is_number(self, name: str) -> bool:
        return (
            self.interface.output(name).dtype in DTYPES
            and DTYPES[self.interface.output(name).dtype].kind in "iuf"
        )

    def shape(self, name: str) -> str:
        """`'scores' FP32 [1,10]`, with sizes as the source answered."""
        spec = self.interface.output(name)
        arrays = self.arrays(name)
        dims = arrays[0].shape if arrays else spec.shape
        return f"'{name}' {spec.dtype} [{','.join(map(str, dims))}]"

    def shapes(self) -> str:
        return ", ".join(self.shape(name) for name in self.names)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the image that the model takes; None if it takes none, or several."""
        found = [
            size
            for spec in self.interface.inputs
            if self.inputs and (size := _image_size(self.inputs[0][spec.name])) is not None
        ]
        return found[0] if len(found) == 1 else None

    @property
    def image_channels(self) -> int | None:
        """How many colours that image has."""
        images = [a for a in self.inputs[0].values() if _image_size(a)] if self.inputs else []
        return images[0].shape[1 if self.channels_first else 3] if len(images) == 1 else None

    @property
    def channels_first(self) -> bool:
        """Whether the image that the model takes is NCHW."""
        return any(
            a.ndim == 4 and a.shape[1] in _CHANNELS
            for a in (self.inputs[0].values() if self.inputs else ())
        )


def _image_size(array: Array) -> tuple[int, int] | None:
    if array.ndim != 4 or min(array.shape) < 1:
        return None
    if array.shape[1] in _CHANNELS:
        return array.shape[2], array.shape[3]
    return (array.shape[1], array.shape[2]) if array.shape[3] in _CHANNELS else None


def wide(arrays: Iterable[Array]) -> list[Array]:
    """In FP64."""
    return [a.astype(np.float64) for a in arrays]


def within(arrays: Iterable[Array], low: float, high: float) -> bool:
    """Whether all numbers are between the two; of nothing: yes."""
    return all(bool(((a >= low) & (a <= high)).all()) for a in arrays)


def whole(arrays: Iterable[Array]) -> bool:
    """Whether all numbers are whole."""
    return all(bool((np.isfinite(a) & (a == np.rint(a))).all()) for a in arrays)


def sums_to_one(rows: Iterable[Array]) -> bool:
    """Whether each vector is a distribution: 0 or more, and 1 together."""
    return all(
        bool(r.size) and bool((r >= 0).all()) and abs(float(r.sum()) - 1) < 1e-2 for r in rows
    )
