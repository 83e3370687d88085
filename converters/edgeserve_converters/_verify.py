"""Is an ONNX file what the framework computes? Run both on the same inputs and compare, in the environment
that has the framework. Standard library only at module level, like the converters.

    session = open_onnx(file)
    pairs = [(framework(feeds), run_onnx(session, feeds)) for feeds in samples]
    write_verification(out_dir, "torch", torch.__version__, pairs)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Error's RMS as a share of the output's, and the share of integers that may differ: fp32 rounding in
# another order stays far below it, a wrong operator does not.
TOLERANCE = 1e-3
# The least number of inputs a converter compares.
SAMPLES = 4
# Masks are written as -inf or as the most negative number; either would drown the other values.
_HUGE = 1e30

Arrays = Mapping[str, Any]


def sample_array(shape: Sequence[int], dtype: Any, rng: Any) -> Any:
    """An array to try a model on: normal numbers; 0 to 255 for uint8, which is pixels; else zeros and
    ones, since integers may be indices. Raises ValueError for other types (strings)."""
    import numpy as np

    dtype = np.dtype(dtype)
    if is_float(dtype):
        return rng.normal(size=tuple(shape)).astype(dtype)
    if dtype.kind not in "iub":
        raise ValueError(f"no samples can be made of type {dtype}")
    return rng.integers(0, 256 if dtype == np.uint8 else 2, size=tuple(shape)).astype(dtype)


def is_float(dtype: Any) -> bool:
    """Also of the types that ml_dtypes adds (bfloat16), whose kind is "V"."""
    return dtype.kind == "f" or "float" in dtype.name


def open_onnx(path: Path) -> Any:
    """A session on onnxruntime's CPU provider, for several calls of `run_onnx`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def run_onnx(model: Any, feeds: Arrays) -> dict[str, Any]:
    """The outputs by name; `model` is a path or a session of `open_onnx`."""
    session = open_onnx(model) if isinstance(model, Path) else model
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def compare(expected: Arrays, got: Arrays) -> dict[str, dict[str, float]]:
    """How far `got` is from `expected`, by output.

    `max_abs_error`; `relative_rms_error`, the error's RMS over the expected values' RMS `scale`; for
    integers, booleans and strings the share of elements that differ. Values that are not finite, or
    huge, must be so in both. Raises RuntimeError when names or shapes are not the same.
    """
    import numpy as np

    if set(expected) != set(got):
        raise RuntimeError(f"the ONNX file's outputs are {sorted(got)}, not {sorted(expected)}")
    found = {}
    for name, wanted in expected.items():
        a, b = np.asarray(wanted), np.asarray(got[name])
        if a.shape != b.shape:
            raise RuntimeError(
                f"the ONNX file's output '{name}' has the shape {list(b.shape)}, not {list(a.shape)}"
            )
        found[name] = _floats(a, b) if is_float(a.dtype) else _exact(a, b)
    return found


def write_verification(
    out_dir: Path, framework: str, version: str, pairs: Sequence[tuple[Arrays, Arrays]]
) -> None:
    """Compare (expected, got) pairs and write `verification.json` beside the ONNX file.

    An output's error is that of all samples together. Raises RuntimeError naming output, error and scale
    when it is over `TOLERANCE`, or when there are fewer than `SAMPLES` pairs; then nothing is written.
    """
    if len(pairs) < SAMPLES:
        raise RuntimeError(f"{len(pairs)} inputs were compared, {SAMPLES} are needed")
    each = [compare(expected, got) for expected, got in pairs]
    outputs = {}
    for name in each[0]:
        rows = [found[name] for found in each]
        scale = _rms([row["scale"] for row in rows])
        error = _rms([row["rms_error"] for row in rows])
        relative = error / scale if scale else error
        outputs[name] = {
            "max_abs_error": max(row["max_abs_error"] for row in rows),
            "relative_rms_error": relative,
            "scale": scale,
        }
        if not relative <= TOLERANCE:
            raise RuntimeError(
                f"the ONNX file computes something else than {framework}: output '{name}' is off by "
                f"{error:.3g} RMS where its values are {scale:.3g} RMS (at most {TOLERANCE:g} of them "
                "is accepted)"
            )
    record = {
        "framework": framework,
        "framework_version": version,
        "samples": len(pairs),
        "max_abs_error": max(found["max_abs_error"] for found in outputs.values()),
        "relative_rms_error": max(found["relative_rms_error"] for found in outputs.values()),
        "outputs": outputs,
    }
    text = json.dumps(record, indent=2, allow_nan=False)
    (out_dir / "verification.json").write_text(text, "utf-8")


def _floats(a: Any, b: Any) -> dict[str, float]:
    import numpy as np

    a, b = _bounded(a.astype(np.float64)), _bounded(b.astype(np.float64))
    finite = np.isfinite(a)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(b[finite]).all()
    ):
        return _measured(float("inf"), float("inf"), 1.0)
    a, error = a[finite], np.abs(b[finite] - a[finite])
    rms = float(np.sqrt(np.mean(np.square(error)))) if error.size else 0.0
    scale = float(np.sqrt(np.mean(np.square(a)))) if a.size else 0.0
    return _measured(float(np.max(error, initial=0.0)), rms, scale)


def _bounded(values: Any) -> Any:
    import numpy as np

    return np.where(np.abs(values) > _HUGE, np.copysign(np.inf, values), values)


def _exact(a: Any, b: Any) -> dict[str, float]:
    """The share of elements that differ, against a scale of 1."""
    import numpy as np

    differ = float(np.mean(a != b)) if a.size else 0.0
    furthest = float(differ > 0)
    if differ and a.dtype.kind in "iu" and b.dtype.kind in "iu":
        furthest = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
    return _measured(furthest, differ, 1.0)


def _measured(furthest: float, rms: float, scale: float) -> dict[str, float]:
    return {
        "max_abs_error": furthest,
        "relative_rms_error": rms / scale if scale else rms,
        "rms_error": rms,
        "scale": scale,
    }


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))
