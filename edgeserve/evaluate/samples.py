"""Samples: inputs of a model, one request of batch 1 each, with labels where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError
from edgeserve.preprocess import load_image
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_bytes
from edgeserve.values import Misfit, fitting

LABEL_KEYS: Final = ("label", "labels", "y")


class Samples:
    """Inputs of a model, one request of batch 1 each, read when they are iterated over.

    `sha256` is over the files' names and contents, so that the same data give the same digest.
    """

    def __init__(
        self,
        source: str,
        interface: Interface,
        *,
        files: list[Path] | None = None,
        arrays: Tensors | None = None,
        preprocess: Preprocess | None = None,
        sha256: str,
        labels: list[int] | None = None,
        random: bool = False,
    ) -> None:
        self.source = source
        self.sha256 = sha256
        self.labels = labels
        self.random = random
        self._interface = interface
        self._files = files
        self._arrays = arrays or {}
        self._preprocess = preprocess

    def __len__(self) -> int:
        if self._files is not None:
            return len(self._files)
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Tensors:
        if self._files is not None and self._preprocess is not None:
            (spec,) = self._interface.inputs
            return {spec.name: _request(load_image(self._files[index], self._preprocess), spec)}
        return {
            s.name: _request(self._arrays[s.name][index, ...], s) for s in self._interface.inputs
        }

    def __iter__(self) -> Iterator[Tensors]:
        for index in range(len(self)):
            yield self[index]

    def first_not_finite(self) -> int | None:
        """The first sample with NaN or infinity in it. Images have none."""
        spoilt = [
            ~np.isfinite(a).reshape(len(a), -1).all(axis=1)
            for a in self._arrays.values()
            if a.dtype.kind == "f" and a.size
        ]
        hits = [int(i) for i in np.flatnonzero(np.logical_or.reduce(spoilt))] if spoilt else []
        return hits[0] if hits else None

    def take(self, count: int) -> Samples:
        """At most `count` samples, evenly spread: folders are often sorted by class."""
        return self if len(self) <= count else self._pick(_spread(len(self), count))

    def leave(self, count: int) -> Samples:
        """The samples that `take(count)` does not take."""
        taken = set(_spread(len(self), count))
        return self._pick([i for i in range(len(self)) if i not in taken])

    def _pick(self, chosen: list[int]) -> Samples:
        return Samples(
            self.source,
            self._interface,
            files=[self._files[i] for i in chosen] if self._files is not None else None,
            arrays={n: a[chosen] for n, a in self._arrays.items()},
            preprocess=self._preprocess,
            sha256=self.sha256,
            labels=[self.labels[i] for i in chosen] if self.labels is not None else None,
            random=self.random,
        )


def samples_from_arrays(
    source: str, interface: Interface, arrays: Tensors, sha256: str, labels: list[int] | None
) -> Samples:
    """Samples stacked along the first axis of each array. Raises DataError where they do not fit."""
    samples = Samples(source, interface, arrays=arrays, sha256=sha256, labels=labels)
    _ = samples[0]
    check_values(source, interface, arrays)
    return samples


def check_values(source: str, interface: Interface, arrays: Tensors) -> None:
    """Raise DataError for values that an input's type does not hold: numpy would wrap them around."""
    for spec in interface.inputs:
        if spec.numpy_dtype.kind not in "iu":
            continue
        try:
            fitting(arrays[spec.name], spec.dtype)
        except Misfit as error:
            raise DataError(
                f"{source}: values for input '{spec.name}' do not fit its type",
                cause=str(error),
                hint="edgeserve inspect MODEL shows the inputs",
            ) from None


def _spread(total: int, count: int) -> list[int]:
    return list(range(total)) if total <= count else [i * total // count for i in range(count)]


def _request(sample: Array, spec: TensorSpec) -> Array:
    """One sample as a request: typed, with a leading axis of 1 where the model wants one.

    Raises DataError with expected and got.
    """
    kinds = {sample.dtype.kind, spec.numpy_dtype.kind}
    if spec.dtype == "BYTES" and sample.dtype.kind in "USO":
        sample = as_bytes(sample)
    elif sample.dtype != spec.numpy_dtype and not (kinds <= {"f"} or kinds <= {"i", "u"}):
        raise DataError(
            f"samples for input '{spec.name}' have the wrong type",
            cause=f"expected {spec.dtype}, got {sample.dtype}",
            hint=f"array.astype('{spec.numpy_dtype}') before saving, if that is what they mean",
        )
    shaped = sample if len(sample.shape) == len(spec.shape) else sample[None]
    if not spec.fits(shaped.shape):
        raise DataError(
            f"samples for input '{spec.name}' have the wrong shape",
            cause=f"expected [{','.join(map(str, spec.shape))}], got {list(sample.shape)} each",
            hint="the first axis of an array counts samples; edgeserve inspect MODEL shows the inputs",
        )
    return np.asarray(shaped, spec.numpy_dtype, order="C")
