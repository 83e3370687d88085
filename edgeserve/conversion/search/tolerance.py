"""What a variant may differ by on the golden samples: the same measure, part by part, that it was judged by.

So what `convert` accepts serves, and a device that computes other numbers than were proven does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import (
    Fidelity,
    OutputFidelity,
    OutputTolerance,
    Part,
    PartTolerance,
    Precision,
)
from edgeserve.chain.golden import differing, rms_errors
from edgeserve.conversion.bounds import DEFAULT_MIN_AGREEMENT, Bounds
from edgeserve.tensors import Array, Tensors, unpadded

# Relative RMS error a device may show against the source's golden outputs, where nothing was measured.
TOLERANCE: Final = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 0.5, "int4": 0.5}
# Another version of an engine, another CPU: twice the error that was measured, and never less than this.
_MARGIN: Final = 2.0
_LEAST: Final = 0.05
# Beyond the bound of the decision there is room for the order of sums only.
_BEYOND: Final = 1.25
# A part is computed from the same activations as the others: below this share of the largest, it is noise.
_RESOLUTION: Final = 0.01
_QUANTIZED: Final = ("int8", "int4")


def errors_on(
    fidelity: Fidelity,
    requests: Sequence[Tensors],
    want: Sequence[Tensors],
    got: Sequence[Tensors],
) -> tuple[OutputTolerance, ...]:
    """What was measured on the golden samples, output by output, as a tolerance without any margin."""
    found = []
    for output in fidelity.outputs:
        pairs = _pairs(output.name, requests, want, got)
        kept = [(w, g) for w, g in pairs if w.shape == g.shape]
        mismatched = len(pairs) - len(kept)
        if output.kind in ("ids", "text"):
            found.append(OutputTolerance(output.name, (), differing(kept), mismatched))
            continue
        parts = [p.part for p in output.parts] or [Part()]
        errors = rms_errors(kept, parts)
        measured = tuple(PartTolerance(p, e) for p, e in zip(parts, errors, strict=True))
        found.append(OutputTolerance(output.name, measured, 0.0, mismatched))
    return tuple(found)


def tolerances(
    precision: Precision,
    fidelity: Fidelity,
    measured: Sequence[tuple[OutputTolerance, ...]],
    requests: Sequence[Tensors],
    want: Sequence[Tensors],
    bounds: Bounds,
) -> tuple[float, tuple[OutputTolerance, ...]]:
    """The tolerances of a variant from what its trials `measured` on the golden samples, and the largest
    of them as a relative RMS error."""
    found = []
    largest = 0.0
    for index, output in enumerate(fidelity.outputs):
        worst = _worst([m[index] for m in measured])
        references = [w for w, _ in _pairs(output.name, requests, want, want)]
        if not worst.parts:
            found.append(_answers(worst, sum(w.size for w in references)))
            continue
        sizes = rms_errors(
            [(w, np.zeros_like(w)) for w in references], [p.part for p in worst.parts]
        )
        whole = rms_errors([(w, np.zeros_like(w)) for w in references], [Part()])[0]
        parts = tuple(
            PartTolerance(
                p.part, _limit(p, size, whole, precision, output, bounds)
            )
            for p, size in zip(worst.parts, sizes, strict=True)
        )  # fmt: skip
        found.append(msgspec.structs.replace(worst, parts=parts))
        if whole:
            largest = max(largest, float(np.sqrt(np.mean([p.rms**2 for p in parts]))) / whole)
    return min(0.9, max(largest, TOLERANCE[precision] if not largest else 0.0)), tuple(found)


def _limit(
    error: PartTolerance,
    size: float,
    whole: float,
    precision: Precision,
    output: OutputFidelity,
    bounds: Bounds,
) -> float:
    """The RMS error that a part may show: what its precision or the decision allows, and not less than
    was measured. `size` is the part's RMS on the golden samples, `whole` the output's."""
    spread = next((p.spread for p in output.parts if p.part == error.part), size)
    room = max(size, spread, _RESOLUTION * whole)
    if precision not in _QUANTIZED:
        return max(TOLERANCE[precision] * room, _MARGIN * error.rms)
    limit = max(_MARGIN * error.rms, _LEAST * room)
    least_db = bounds.sqnr(output.name, output.kind)
    if least_db is not None:
        limit = min(limit, spread * 10 ** (-least_db / 20))
    return max(limit, _BEYOND * error.rms)


def _answers(error: OutputTolerance, elements: int) -> OutputTolerance:
    """The share of ids and texts that may differ: more than was measured, at least one element, never half."""
    one = 1.0 / max(elements, 1)
    room = min(0.5, max(_MARGIN * error.differing, 1.0 - DEFAULT_MIN_AGREEMENT, one))
    return msgspec.structs.replace(error, differing=max(room, error.differing))


def _worst(found: Sequence[OutputTolerance]) -> OutputTolerance:
    """Of several runtimes, the largest error of each part."""
    first = found[0]
    mismatched = max(f.mismatched for f in found)
    share = max(f.differing for f in found)
    if any([p.part for p in f.parts] != [p.part for p in first.parts] for f in found):
        whole = max(p.rms for f in found for p in f.parts)
        return OutputTolerance(first.name, (PartTolerance(Part(), whole),), share, mismatched)
    parts = tuple(
        PartTolerance(same[0].part, max(p.rms for p in same))
        for same in zip(*(f.parts for f in found), strict=True)
    )
    return OutputTolerance(first.name, parts, share, mismatched)


def _pairs(
    name: str, requests: Sequence[Tensors], want: Sequence[Tensors], got: Sequence[Tensors]
) -> list[tuple[Array, Array]]:
    return [
        (unpadded(r, w[name]), unpadded(r, g[name]))
        for r, w, g in zip(requests, want, got, strict=True)
    ]
