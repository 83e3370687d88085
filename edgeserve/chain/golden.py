"""The golden check: a candidate reproduces the source's stored outputs before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgeserve.bundle import Bundle, OutputTolerance, Part, Variant
from edgeserve.errors import CheckFailed
from edgeserve.runtimes import Session
from edgeserve.tensors import (
    Array,
    Interface,
    Tensors,
    as_bytes,
    join_batches,
    split_batches,
    unpadded,
)


class Deviation(msgspec.Struct, frozen=True):
    """How far outputs are from the golden ones: `error` is a relative RMS error, comparable with what is
    `tolerated`; `cause` says so in words, of the worst output."""

    error: float
    tolerated: float
    cause: str

    @property
    def is_fine(self) -> bool:
        return self.error <= self.tolerated


def relative_rms_error(reference: Array, output: Array) -> float:
    """RMS of the difference over RMS of the reference (so SQNR in dB is -20*log10 of it).

    Infinite when `output` has non-finite values where the reference has none, or another shape.
    """
    if reference.shape != output.shape:
        return float("inf")
    if reference.dtype.kind not in "fiu":
        return 0.0 if not differing([(reference, output)]) else float("inf")
    finite = np.isfinite(reference)
    wide, got = reference[finite].astype(np.float64), output[finite].astype(np.float64)
    if not np.all(np.isfinite(got)):
        return float("inf")
    noise = float(np.linalg.norm(wide - got))
    signal = float(np.linalg.norm(wide))
    if noise == 0.0:
        return 0.0
    return noise / signal if signal > 0.0 else float("inf")


def golden_batches(interface: Interface, golden: Tensors) -> list[Tensors]:
    """Golden tensors, stacked along a sample axis, as the requests that made them.

    Models with a batch dimension were run one sample at a time, which keeps that axis of size 1.
    """
    samples = len(next(iter(golden.values())))
    if interface.max_batch:
        return [{n: a[i : i + 1] for n, a in golden.items()} for i in range(samples)]
    # A sample of rank 0 stays an array.
    return [{n: a[i, ...] for n, a in golden.items()} for i in range(samples)]


def check_golden(bundle: Bundle, session: Session, variant_id: str) -> float:
    """Run the golden samples; return the worst error over outputs, as a relative RMS error.

    Raises CheckFailed when it exceeds the variant's tolerance.
    """
    interface = bundle.manifest.interface
    inputs, outputs = bundle.golden()
    requests = golden_batches(interface, inputs)
    got = [session.run(request) for request in requests]
    return _check(bundle, variant_id, requests, golden_batches(interface, outputs), got)


def check_batches(bundle: Bundle, session: Session, variant_id: str, sizes: Sequence[int]) -> None:
    """Run golden samples together in batches of these sizes, as far as the model takes them.

    Raises CheckFailed as check_golden does.
    """
    interface = bundle.manifest.interface
    inputs, outputs = (golden_batches(interface, tensors) for tensors in bundle.golden())
    for size in sizes:
        if not 1 < size <= interface.max_batch:
            continue
        picks = [i % len(inputs) for i in range(size)]
        requests, want = [inputs[i] for i in picks], [outputs[i] for i in picks]
        got = split_batches(session.run(join_batches(requests)), [1] * size)
        few = max(1.0, (len(inputs) / len(set(picks))) ** 0.5)
        _check(bundle, variant_id, requests, want, got, f" in a batch of {size}", few)


def _check(
    bundle: Bundle,
    variant_id: str,
    requests: list[Tensors],
    want: list[Tensors],
    got: list[Tensors],
    how: str = "",
    slack: float = 1.0,
) -> float:
    manifest = bundle.manifest
    variant = manifest.variant(variant_id)
    found = deviation(variant, manifest.interface, requests, want, got, slack)
    if not found.is_fine:
        raise CheckFailed(
            f"'{variant_id}' does not reproduce the golden samples{how}",
            cause=found.cause,
            hint="the device computes wrong numbers, or in a precision that was not verified",
        )
    return found.error


def deviation(
    variant: Variant,
    interface: Interface,
    requests: Sequence[Tensors],
    want: Sequence[Tensors],
    got: Sequence[Tensors],
    slack: float = 1.0,
) -> Deviation:
    """How far `got` is from the golden outputs `want`, as the variant's tolerances measure it.

    Tolerances are about all golden samples together; `slack` is how much larger the RMS error of those
    given here may be.
    """
    tolerated = slack * variant.golden_tolerance
    if variant.golden:
        worst = Deviation(0.0, tolerated, "no error")
        for output in variant.golden:
            share, cause = _share(output, requests, want, got, slack)
            if share * tolerated > worst.error:
                worst = Deviation(share * tolerated, tolerated, cause)
        return worst
    names = [spec.name for spec in interface.outputs]
    error = max((_relative(requests, want, got, name) for name in names), default=0.0)
    return Deviation(error, tolerated, f"relative RMS error {error:.3g}, tolerated {tolerated:.3g}")


def _share(
    tolerance: OutputTolerance,
    requests: Sequence[Tensors],
    want: Sequence[Tensors],
    got: Sequence[Tensors],
    slack: float,
) -> tuple[float, str]:
    """How much of its tolerance an output uses up: 1 is all. And what it is that does."""
    name = tolerance.name
    pairs = [
        (unpadded(r, w[name]), unpadded(r, g[name]))
        for r, w, g in zip(requests, want, got, strict=True)
    ]
    kept = [(w, g) for w, g in pairs if w.shape == g.shape]
    if len(pairs) - len(kept) > tolerance.mismatched:
        shapes = next((w.shape, g.shape) for w, g in pairs if w.shape != g.shape)
        return float("inf"), f"output '{name}' has shape {shapes[1]}, the golden sample {shapes[0]}"
    if not tolerance.parts:
        found, allowed = differing(kept), min(1.0, slack * slack * tolerance.differing)
        words = f"output '{name}': {100 * found:.3g} % differs, tolerated {100 * allowed:.3g} %"
        return _ratio(found, allowed), words
    errors = rms_errors(kept, [p.part for p in tolerance.parts])
    limits = [slack * p.rms for p in tolerance.parts]
    shares = [_ratio(e, limit) for e, limit in zip(errors, limits, strict=True)]
    worst = max(range(len(shares)), key=lambda i: shares[i])
    where = tolerance.parts[worst].part.describe(name, want[0][name].ndim)
    words = f"output '{where}': RMS error {errors[worst]:.3g}, tolerated {limits[worst]:.3g}"
    return shares[worst], words


def _ratio(found: float, allowed: float) -> float:
    if found == 0.0:
        return 0.0
    return found / allowed if allowed else float("inf")


def rms_errors(pairs: Sequence[tuple[Array, Array]], parts: Sequence[Part]) -> list[float]:
    """The RMS error of each part of an output over pairs of a reference and an output of its shape.

    What is not finite in the reference does not count; what is not finite beside it is infinitely wrong.
    """
    squares = np.zeros(len(parts))
    counts = np.zeros(len(parts))
    for want, got in pairs:
        finite = np.isfinite(want)
        error = np.where(finite, want, 0).astype(np.float64) - np.where(finite, got, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            squared = error * error
        squared = np.where(np.isnan(squared), np.inf, squared)  # of scalars, an array again
        for index, part in enumerate(parts):
            for start, stop in part.spans or ((0, None),):
                cut = _slices(squared, part.axis, start, stop)
                squares[index] += cut.sum()
                counts[index] += np.count_nonzero(_slices(finite, part.axis, start, stop))
    return [float(np.sqrt(s / c)) if c else 0.0 for s, c in zip(squares, counts, strict=True)]


def _slices(array: Array, axis: int, start: int, stop: int | None) -> Array:
    if array.ndim == 0:
        return array
    return array[(..., slice(start, stop), *[slice(None)] * (-axis - 1))]


def differing(pairs: Sequence[tuple[Array, Array]]) -> float:
    """The share of elements that differ. Some engines return texts as bytes, some as str."""
    pairs = [(_comparable(w), _comparable(g)) for w, g in pairs]
    total = sum(w.size for w, _ in pairs)
    return sum(int(np.count_nonzero(w != g)) for w, g in pairs) / total if total else 0.0


def _comparable(array: Array) -> Array:
    return as_bytes(array) if array.dtype == object else array


def _relative(
    requests: Sequence[Tensors], want: Sequence[Tensors], got: Sequence[Tensors], name: str
) -> float:
    """`relative_rms_error` of one output over all requests; padding does not count."""
    pairs = [(r, w[name], g[name]) for r, w, g in zip(requests, want, got, strict=True)]
    if any(w.shape != g.shape for _, w, g in pairs):
        return float("inf")
    reference = np.concatenate([unpadded(r, w).reshape(-1) for r, w, _ in pairs])
    return relative_rms_error(
        reference, np.concatenate([unpadded(r, g).reshape(-1) for r, _, g in pairs])
    )
