"""How a tensor of the interface is called, laid out and scaled in a TFLite file, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.errors import UnsupportedModel
from edgeserve.runtimes.narrowing import beyond, fits_in
from edgeserve.tensors import Array, Tensors, TensorSpec


def ports_of(interpreter: Any, model: VariantFiles) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of the file. Raises UnsupportedModel where the interface has others.

    Conversions drop inputs that nothing reads: the interface's inputs that the file lacks are left out, where
    the file has no others in their place.
    """
    names = _signature_names(interpreter)
    details = interpreter.get_input_details()
    inputs = _by_name(details, names.get("inputs", {}))
    given = [s for s in model.interface.inputs if model.binding(s.name).name in inputs]
    if len(given) != len(details):
        given = list(model.interface.inputs)
    outputs = _by_name(interpreter.get_output_details(), names.get("outputs", {}))
    return (
        [Port(s, model, inputs, "input") for s in given],
        [Port(s, model, outputs, "output") for s in model.interface.outputs],
    )


def in_rows(run: Callable[[Tensors], Tensors], inputs: Tensors, step: int) -> Tensors:
    """A batch of any size in calls of `step` rows each; the last one is filled up with its last row."""
    size = len(next(iter(inputs.values())))
    parts: list[Tensors] = []
    for start in range(0, size, step):
        part = {name: array[start : start + step] for name, array in inputs.items()}
        missing = step - len(next(iter(part.values())))
        if missing:
            part = {n: np.concatenate([a, a[-1:].repeat(missing, 0)]) for n, a in part.items()}
        parts.append(run(part))
    if size == step:
        return parts[0]
    return {name: np.concatenate([p[name] for p in parts])[:size] for name in parts[0]}


class Port:
    """One input or output: the way from the interface's tensor to the file's, and back."""

    def __init__(
        self, spec: TensorSpec, model: VariantFiles, details: Mapping[str, Any], kind: str
    ) -> None:
        binding = model.binding(spec.name)
        detail = details.get(binding.name)
        if detail is None:
            raise UnsupportedModel(
                f"litert cannot serve {model.path.name}",
                cause=f"it has no {kind} '{binding.name}', only {', '.join(details)}",
            )
        self.spec = spec
        self.index = int(detail["index"])
        self.shape = tuple(int(d) for d in detail["shape"])
        self.dtype = np.dtype(detail["dtype"])
        self._scale, self._zero = detail["quantization"]
        self._order = binding.permutation
        self._back = tuple(int(i) for i in np.argsort(self._order)) if self._order else None
        self._quantized = self._scale != 0.0 and spec.numpy_dtype.kind == "f"
        kinds = (spec.numpy_dtype.kind, self.dtype.kind)
        self._narrowed = set(kinds) <= {"i", "u"} and not np.can_cast(spec.numpy_dtype, self.dtype)

    def to_file(self, array: Array) -> Array:
        if self._order:
            array = array.transpose(self._order)
        if self._quantized and self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            steps = np.rint(array / np.float32(self._scale)) + self._zero
            array = np.clip(steps, limits.min, limits.max)
        elif self._narrowed and not fits_in(array, self.dtype):
            raise beyond("litert", self.spec.name, self.dtype)
        return np.asarray(array, self.dtype, order="C")

    def from_file(self, array: Array) -> Array:
        if self._quantized and array.dtype.kind in "iu":
            array = (array.astype(np.float32) - np.float32(self._zero)) * np.float32(self._scale)
        if self._back:
            array = array.transpose(self._back)
        return np.asarray(array, self.spec.numpy_dtype, order="C")


def _signature_names(interpreter: Any) -> dict[str, dict[str, int]]:
    """Names of a file's signature: TensorFlow's exporter calls the tensors themselves otherwise."""
    lists = interpreter._get_full_signature_list() or {}
    return next(iter(lists.values()), {})


def _by_name(details: list[Any], names: Mapping[str, int]) -> dict[str, Any]:
    by_index = {d["index"]: d for d in details}
    found = {d["name"]: d for d in details}
    found.update({n: by_index[i] for n, i in names.items() if i in by_index})
    return found
