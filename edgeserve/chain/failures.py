"""What kind of failure an exception is, and whether an answer can be right at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from edgeserve.bundle import Bundle
from edgeserve.errors import (
    BeyondEngine,
    CheckFailed,
    DependencyMissing,
    DeviceLost,
    EdgeServeError,
    InferenceFailed,
    UsageError,
    WrongNumbers,
)
from edgeserve.tensors import Array, Tensors

Reason = Literal[
    "crash", "hang", "memory", "exception", "out-of-memory", "non-finite", "golden", "drift",
    "unavailable", "unsupported", "values",
]  # fmt: skip
# As engines and drivers write it.
_OUT_OF_MEMORY: Final = (
    "out of memory", "out_of_memory", "outofmemory", "cuda_error_out_of", "cudaerrormemoryallocation",
    "failed to allocate memory", "memory allocation failed", "bad_alloc", "bad allocation",
    "mem_object_allocation_failure", "cl_out_of_resources", "out_of_device_memory",
    "out_of_host_memory", "not enough memory", "memoryerror",
)  # fmt: skip


class NonFinite(WrongNumbers):
    """Outputs with NaN or infinity where the golden ones have none. They come along: another device may
    show that they are right for these inputs."""

    def __init__(self, outputs: Tensors, device: str) -> None:
        super().__init__(
            f"{device} returned NaN or infinity",
            hint="its driver or its precision is at fault: try a variant with a higher precision",
        )
        self.outputs = outputs


def reason_of(error: EdgeServeError) -> Reason:
    """The failure's name in metrics."""
    if isinstance(error, DeviceLost):
        return error.reason
    if isinstance(error, NonFinite):
        return "non-finite"
    if isinstance(error, WrongNumbers):
        return "drift"
    if isinstance(error, CheckFailed):
        return "golden"
    if isinstance(error, BeyondEngine):
        return "values"
    if is_out_of_memory(error):
        return "out-of-memory"
    if isinstance(error, InferenceFailed):
        return "exception"
    return "unsupported" if is_permanent(error) else "unavailable"


def in_words(error: EdgeServeError) -> str:
    """What happened, in the device's own words, and what to do, on one line."""
    text = " ".join(str(error).split())
    return f"{text} (hint: {error.hint})" if error.hint else text


def is_permanent(error: EdgeServeError) -> bool:
    """Whether trying again is in vain as long as nothing is installed."""
    return isinstance(error, UsageError | DependencyMissing)


def is_out_of_memory(error: EdgeServeError) -> bool:
    text = f"{error.message} {error.cause or ''}".lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def finite_outputs(bundle: Bundle) -> tuple[str, ...]:
    """The outputs whose golden values are all finite."""
    golden = bundle.golden()[1]
    return tuple(
        spec.name
        for spec in bundle.manifest.interface.outputs
        if golden[spec.name].dtype.kind == "f" and _is_finite(golden[spec.name])
    )


def all_finite(outputs: Tensors, names: Sequence[str]) -> bool:
    return all(_is_finite(outputs[name]) for name in names)


def inputs_are_finite(inputs: Tensors) -> bool:
    return all(_is_finite(a) for a in inputs.values() if a.dtype.kind == "f")


def _is_finite(array: Array) -> bool:
    return bool(np.logical_and.reduce(np.isfinite(array), axis=None))
