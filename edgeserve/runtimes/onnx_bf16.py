"""bfloat16 at a model's border: numpy has no such type, so onnxruntime's `run` takes and gives none.

The bits go by onnxruntime's own values instead, from and to arrays of uint16.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final

import numpy as np

from edgeserve.tensors import Array, Tensors

_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16


def run_bf16(session: Any, inputs: Tensors, halves: set[str], outputs: list[str]) -> list[Array]:
    """`session.run(outputs, inputs)`, where `halves` names the inputs and outputs that are bfloat16."""
    import onnxruntime as ort

    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.asarray(array, order="C"), _BFLOAT16
        )
        if name in halves
        else ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in inputs.items()
    }
    answers = session.run_with_ort_values(outputs, values)
    return [
        _bits(answer) if name in halves else answer.numpy()
        for name, answer in zip(outputs, answers, strict=True)
    ]


def _bits(value: Any) -> Array:
    """A copy of the elements of a value of two-byte elements in main memory."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, np.uint16)
    kind = ctypes.c_uint16 * count
    return np.frombuffer(kind.from_address(value.data_ptr()), np.uint16).reshape(shape).copy()
