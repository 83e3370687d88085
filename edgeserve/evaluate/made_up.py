"""Random inputs, for where there are no data. They prove nothing about real data, but they are meant to reach
all that a model may be given: each input's values span what its type and its readers in the graph allow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from edgeserve.evaluate.samples import Samples
from edgeserve.tensors import PADDING_MASKS, Array, Interface, Tensors, TensorSpec

# Nobody limits it: a time in milliseconds since 1970 is less than this, and an INT32 is far less.
WIDE: Final = 2**41
_WORDS: Final = ("red", "a longer text, of several words", "Größe 42", "", "x", "3.14", "日本語")
_NUMBERS: Final = ("0", "1", "-2", "3.5", "12", "250")
_LENGTH: Final = re.compile(r"(^|_)(len|lens|lengths?|seqlens?)(_|$|\d)")

Kind = Literal["normal", "positive", "uniform", "wide", "bool", "mask", "length", "position", "table",
               "choice"]  # fmt: skip


class Span(msgspec.Struct, frozen=True):
    """What one input's random values are.

    `normal`: `offset + scale * N(0, 1)`, the two broadcast to the input. `positive`: its absolute value, and a
    bit. `uniform`: `low` to `high`, both included, numbers or arrays along the last axis. `wide`: to `high`, half of
    them spread over all magnitudes. `mask`: 1, then 0 (`flipped`: 0, then 1) from a length on that is the sample's.
    `length`: that length, of `high` at most. `table`: one of `values`, each the whole input. `choice`: elements out
    of `values`. Of integers, `values` are mixed in among the others.
    """

    kind: Kind
    low: Any = 0
    high: Any = 1
    offset: Any = 0.0
    scale: Any = 1.0
    values: tuple[Any, ...] = ()
    flipped: bool = False
    nonzero: bool = False

    def describe(self) -> str:
        """For a report: what the values were."""
        if self.kind in ("uniform", "wide", "length"):
            low, high = np.min(self.low), np.max(self.high)
            return (
                f"random values {low:g} to {high:g}"
                if high >= 1e6
                else f"random values {low} to {high}"
            )
        if self.kind in ("table", "choice"):
            shown = [v.tolist() if isinstance(v, np.ndarray) else v for v in self.values[:3]]
            return f"such as {', '.join(map(str, shown))}"
        return {"mask": "ones, with padding at the end", "bool": "both values",
                "position": "0, 1, 2 …", "positive": "positive random values"}.get(
                    self.kind, "normally distributed random values")  # fmt: skip

    def capped(self, most: int) -> Span:
        """The same, should a model fail on larger values where nothing limits them."""
        if self.kind != "wide":
            return self
        return Span("uniform", 0, min(self.high, most))


def is_mask(spec: TensorSpec) -> bool:
    """Whether an input says by its name that it tells padding from content."""
    name = spec.name.lower()
    return len(spec.shape) >= 2 and (name in PADDING_MASKS or "mask" in re.split(r"[^a-z]+", name))


def is_length(spec: TensorSpec) -> bool:
    small = len(spec.shape) <= 1 or (len(spec.shape) == 2 and spec.shape[1] == 1)
    return small and spec.numpy_dtype.kind in "iu" and bool(_LENGTH.search(spec.name.lower()))


def usual_span(spec: TensorSpec) -> Span:
    """By type and name alone, for an input whose readers are known to set no limits."""
    kind = spec.numpy_dtype.kind
    if is_mask(spec):
        return Span("mask", flipped="padding" in spec.name.lower() and kind == "b")
    if kind == "b":
        return Span("bool")
    if kind == "O":
        return Span("choice", values=_WORDS)
    if kind not in "iu" or spec.dtype == "BF16":
        return Span("normal")
    limits = np.iinfo(spec.numpy_dtype)
    if limits.bits < 32:
        return Span("uniform", int(limits.min), int(limits.max))
    return Span("wide", 0, min(WIDE, int(limits.max)))


def careful_span(spec: TensorSpec) -> Span:
    """The same where the readers are not known: integers may be indices of anything, so they are 0 or 1."""
    usual = usual_span(spec)
    return Span("uniform", 0, 1) if usual.kind == "wide" else usual


def numbers_as_text() -> Span:
    return Span("choice", values=_NUMBERS)


def made_up_samples(
    interface: Interface,
    count: int,
    spans: Mapping[str, Span] | None = None,
    *,
    seed: int = 0,
    open_size: int = 1,
) -> Samples:
    """Random samples; by type and name for inputs that `spans` does not have. Dynamic dimensions but the first
    get `open_size`."""
    generator = np.random.default_rng(seed)
    sizes = {s.name: sample_shape(interface, s, open_size) for s in interface.inputs}
    # How much of a sequence is content, the same for all inputs of a sample; all of it in the first.
    shares = np.random.default_rng([seed, 1]).uniform(0.25, 1.0, max(0, count - 1))
    share = np.concatenate([[1.0], shares])[:count]
    arrays: Tensors = {}
    for spec in interface.inputs:
        span = (spans or {}).get(spec.name) or careful_span(spec)
        arrays[spec.name] = _values(generator, span, spec, (count, *sizes[spec.name]), share)
    name = f"seed-{seed}-{open_size}"
    return Samples("random", interface, arrays=arrays, sha256=name, random=True)


def sample_shape(interface: Interface, spec: TensorSpec, open_size: int) -> tuple[int, ...]:
    """The shape of one sample, without the batch axis where the model has one that is 1 or open."""
    shape = concrete(spec.shape, open_size)
    return shape[1:] if shape and (interface.max_batch or shape[0] == 1) else shape


def concrete(shape: Sequence[int | str], open_size: int) -> tuple[int, ...]:
    """A shape with sizes for what is open: 1 for the first dimension, `open_size` for others; a sum of names
    is the sum of their sizes."""
    return tuple(
        d if isinstance(d, int) else _size(d, open_size) if axis else 1
        for axis, d in enumerate(shape)
    )


def _size(symbol: str, open_size: int) -> int:
    parts = [p.strip() for p in symbol.split("+")]
    return sum(int(p) if p.isdecimal() else open_size for p in parts)


def _values(
    generator: np.random.Generator,
    span: Span,
    spec: TensorSpec,
    shape: tuple[int, ...],
    share: Array,
) -> Array:
    """Samples along the first axis, in the input's type."""
    count, size = shape[0], shape[1:]
    if span.kind == "table":
        picks = generator.integers(0, len(span.values), count)
        tables = [np.asarray(span.values[i], spec.numpy_dtype) for i in picks]
        alike = [t if t.shape == tables[0].shape else tables[0] for t in tables]
        return np.stack([t.reshape(size) if t.size == _elements(size) else t for t in alike])
    if span.kind == "choice":
        return _chosen(generator, span, spec, shape)
    if span.kind in ("mask", "length", "position"):
        return _sequences(span, spec, shape, share)
    if span.kind == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.numpy_dtype.kind in "iu" and spec.dtype != "BF16":
        return _integers(generator, span, shape).astype(spec.numpy_dtype)
    return _as_type(_floats(generator, span, shape), spec)


def _elements(size: tuple[int, ...]) -> int:
    return int(np.prod(size, dtype=np.int64))


def _chosen(
    generator: np.random.Generator, span: Span, spec: TensorSpec, shape: tuple[int, ...]
) -> Array:
    pool: Array = np.empty(len(span.values), spec.numpy_dtype)
    pool[:] = [v.encode() if isinstance(v, str) else v for v in span.values]
    # Every value at least once, where there is room: few samples would miss some.
    picks = generator.permutation(np.arange(_elements(shape)) % len(pool)).reshape(shape)
    chosen: Array = pool[picks]
    return chosen


def _sequences(span: Span, spec: TensorSpec, shape: tuple[int, ...], share: Array) -> Array:
    count, steps = shape[0], shape[-1] if len(shape) > 1 else 1
    if span.kind == "length":
        lengths = np.maximum(1, np.ceil(share * span.high)).reshape(count, *[1] * (len(shape) - 1))
        return np.broadcast_to(lengths, shape).astype(spec.numpy_dtype)
    places = np.broadcast_to(np.arange(steps), shape)
    if span.kind == "position":
        return places.astype(spec.numpy_dtype)
    lengths = np.maximum(1, np.ceil(share * steps)).reshape(count, *[1] * (len(shape) - 1))
    flags: Array = (places < lengths) ^ span.flipped
    return flags.astype(spec.numpy_dtype)


def _integers(generator: np.random.Generator, span: Span, shape: tuple[int, ...]) -> Array:
    low, high = np.ceil(span.low), np.floor(span.high)
    if span.kind == "normal" or span.kind == "positive":
        values = np.rint(_floats(generator, span, shape)).astype(np.int64)
    else:
        values = generator.integers(
            np.asarray(low, np.int64), np.asarray(high, np.int64), shape, endpoint=True
        )
    if span.kind == "wide":
        magnitudes = np.exp2(generator.uniform(0, np.log2(float(span.high)), shape)).astype(
            np.int64
        )
        values = np.where(generator.integers(0, 2, shape), values, magnitudes - 1)
    if span.values:
        mixed = np.asarray(span.values, np.int64)[generator.integers(0, len(span.values), shape)]
        values = np.where(generator.integers(0, 3, shape) == 0, mixed, values)
    return np.where(values == 0, 1, values) if span.nonzero else values


def _floats(generator: np.random.Generator, span: Span, shape: tuple[int, ...]) -> Array:
    if span.kind == "uniform":
        return generator.uniform(span.low, span.high, shape)
    values: Array = generator.normal(size=shape)
    with contextlib.suppress(
        ValueError
    ):  # constants of a size that open dimensions do not have here
        values = span.offset + span.scale * values
    if values.shape != shape:
        values = generator.normal(size=shape)
    if span.kind == "positive":
        values = np.abs(values) + 1e-3
    if span.nonzero:
        values = np.where(np.abs(values) < 0.25, 0.25, values)
    return values


def _as_type(values: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "BF16":  # the upper halves of float32
        bits: Array = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits
    return values.astype(spec.numpy_dtype)
