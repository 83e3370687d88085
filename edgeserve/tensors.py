"""What a tensor looks like at a model's border: element types, specs, and their checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeserve.errors import InvalidInput

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

# Names and sizes are those of the Open Inference Protocol v2 (required_api.md, "Tensor Data Types").
# BF16 has no numpy type of its own: it travels as the raw upper halves of float32, in uint16.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_NAMES: Final[dict[np.dtype[Any], str]] = {
    dtype: name for name, dtype in DTYPES.items() if name != "BF16"
}


def numbers_of_bf16(array: Array) -> Array:
    """Raw BF16 as FP32; what is numbers already, as it is."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def dtype_name(dtype: npt.DTypeLike) -> str:
    """The protocol's name of a numpy dtype. Raises InvalidInput for types without one."""
    known = _NAMES.get(dtype) if isinstance(dtype, np.dtype) else None
    if known is not None:
        return known
    plain = np.dtype(dtype).newbyteorder("=")
    if plain.kind in "SU":
        return "BYTES"
    try:
        return _NAMES[plain]
    except KeyError:
        raise InvalidInput(f"element type {dtype} has no name in the inference protocol") from None


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, element type and shape of one input or output.

    `shape` holds an int for a fixed dimension and a name for a dynamic one: `("batch", 3, 224, 224)`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def wire_shape(self) -> list[int]:
        """The shape with -1 for dynamic dimensions, as the inference protocol writes it."""
        return [d if isinstance(d, int) else -1 for d in self.shape]

    def describe(self) -> str:
        return f"{self.dtype}[{','.join(str(d) for d in self.shape)}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, shape, strict=True)
        )

    def check(self, array: Array) -> None:
        """Raise InvalidInput, with expected and got, unless `array` has this type and shape."""
        if array.dtype != self.numpy_dtype:
            got = _NAMES.get(array.dtype, str(array.dtype))
            raise InvalidInput(f"input '{self.name}': expected {self.dtype}, got {got}")
        if not self.fits(array.shape):
            want = ",".join(str(d) for d in self.shape)
            have = ",".join(str(d) for d in array.shape)
            raise InvalidInput(f"input '{self.name}': expected shape [{want}], got [{have}]")


def as_bytes(array: Array) -> Array:
    """An array of texts (numpy's U and S, or objects) as BYTES tensors are: an object array of bytes."""
    result: Array = np.empty(array.size, dtype=object)
    result[:] = [t if type(t) is bytes else _encoded(t) for t in array.reshape(-1).tolist()]
    return result.reshape(array.shape)


def _encoded(text: object) -> bytes:
    return bytes(text) if isinstance(text, bytes) else str(text).encode()


def storable(tensors: Tensors) -> Tensors:
    """Tensors as an `.npz` holds them without a pickle: texts as fixed-width bytes, which `as_bytes` undoes
    (NUL characters at their ends aside)."""
    return {n: a.astype(bytes) if a.dtype == object else a for n, a in as_texts(tensors).items()}


def as_texts(tensors: Tensors) -> Tensors:
    """The same with every text as bytes."""
    return {n: as_bytes(a) if a.dtype.kind in "OUS" else a for n, a in tensors.items()}


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's inputs and outputs, and whether requests can share a batch.

    `max_batch` is 0 where the first dimension is not a batch dimension, or is fixed by the model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int = 0

    def input(self, name: str) -> TensorSpec:
        return _find(self.inputs, name, "input")

    def output(self, name: str) -> TensorSpec:
        return _find(self.outputs, name, "output")

    def check(self, tensors: Mapping[str, Array]) -> int:
        """Check a request's inputs; return its batch size (1 for models without a batch dimension).

        Raises InvalidInput naming the input, what was expected and what came.
        """
        for spec in self.inputs:
            if spec.name not in tensors:
                raise InvalidInput(
                    f"input '{spec.name}' is missing: expected {spec.describe()}, "
                    f"got {sorted(tensors) or 'nothing'}"
                )
            spec.check(tensors[spec.name])
        for name in tensors:
            _find(self.inputs, name, "input")
        if not self.max_batch:
            return 1
        sizes = {name: array.shape[0] for name, array in tensors.items()}
        if len(set(sizes.values())) > 1:
            raise InvalidInput(f"inputs have different batch sizes: {sizes}")
        size: int = next(iter(sizes.values()))
        if not 1 <= size <= self.max_batch:
            raise InvalidInput(
                f"input '{self.inputs[0].name}': expected a batch of 1 to {self.max_batch}, got {size}"
            )
        return size


def _find(specs: tuple[TensorSpec, ...], name: str, kind: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(f"'{s.name}' {s.describe()}" for s in specs)
    raise InvalidInput(f"unknown {kind} '{name}': the model has {known}")


def join_batches(requests: list[Tensors]) -> Tensors:
    """Concatenate requests along their first dimension; the inverse of `split_batches`."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


def split_batches(joined: Tensors, sizes: list[int]) -> list[Tensors]:
    """Cut tensors into views of `sizes` rows each."""
    if len(sizes) == 1:
        return [joined]
    parts: list[Tensors] = []
    start = 0
    for size in sizes:
        parts.append({name: array[start : start + size] for name, array in joined.items()})
        start += size
    return parts


def digest_of(tensors: Tensors, scope: object = None) -> bytes:
    """Equal for the same names, types, shapes and values, and the same `repr` of `scope`; 32 bytes."""
    digest = hashlib.blake2b(repr(scope).encode(), digest_size=32)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        if array.dtype == object:
            for item in array.reshape(-1):
                data = item if isinstance(item, bytes) else str(item).encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.digest()


# What text models call the input that says which positions of a sequence are not padding.
PADDING_MASKS: Final = ("attention_mask", "input_mask")


def unpadded(inputs: Tensors, output: Array) -> Array:
    """What of an output per token, `[batch, sequence, …]`, belongs to tokens, as the request's mask says;
    other outputs, and those of requests without a mask, as they are.

    What a model computes for padding is read by nobody, and no precision is meant to keep it.
    """
    for name in PADDING_MASKS:
        mask = inputs.get(name)
        if mask is not None and output.ndim > 2 and mask.shape == output.shape[:2]:
            tokens = mask.astype(bool)
            return output[tokens] if tokens.any() else output
    return output
