"""The golden check: a candidate reproduces the source's stored outputs before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeserve.bundle import Bundle
from edgeserve.errors import CheckFailed
from edgeserve.runtimes import Session
from edgeserve.tensors import (
    Array,
    Interface,
    Tensors,
    join_batches,
    split_batches,
    unpadded,
)


def relative_rms_error(reference: Array, output: Array) -> float:
    """RMS of the difference over RMS of the reference (so SQNR in dB is -20*log10 of it).

    Infinite when `output` has non-finite values where the reference has none, or another shape.
    """
    if reference.shape != output.shape:
        return float("inf")
    if reference.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(reference, output) else float("inf")
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
    return [{n: a[i] for n, a in golden.items()} for i in range(samples)]


def check_golden(bundle: Bundle, session: Session, variant_id: str) -> float:
    """Run the golden samples; return the worst relative RMS error over outputs.

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
        _check(bundle, variant_id, requests, want, got, f" in a batch of {size}")


def _check(
    bundle: Bundle,
    variant_id: str,
    requests: list[Tensors],
    want: list[Tensors],
    got: list[Tensors],
    how: str = "",
) -> float:
    variant = bundle.manifest.variant(variant_id)
    names = [spec.name for spec in bundle.manifest.interface.outputs]
    worst = max(_error(requests, want, got, name) for name in names)
    if not worst <= variant.golden_tolerance:
        raise CheckFailed(
            f"'{variant_id}' does not reproduce the golden samples{how}",
            cause=f"relative RMS error {worst:.3g}, tolerated {variant.golden_tolerance:.3g}",
            hint="the device computes wrong numbers, or other precisions than were proven",
        )
    return worst


def sample_error(interface: Interface, request: Tensors, want: Tensors, got: Tensors) -> float:
    """The worst relative RMS error over the outputs of one request."""
    return max(_error([request], [want], [got], spec.name) for spec in interface.outputs)


def _error(requests: list[Tensors], want: list[Tensors], got: list[Tensors], name: str) -> float:
    """`relative_rms_error` of one output over all requests; padding does not count."""
    pairs = [(r, w[name], g[name]) for r, w, g in zip(requests, want, got, strict=True)]
    if any(w.shape != g.shape for _, w, g in pairs):
        return float("inf")
    reference = np.concatenate([unpadded(r, w).reshape(-1) for r, w, _ in pairs])
    return relative_rms_error(
        reference, np.concatenate([unpadded(r, g).reshape(-1) for r, _, g in pairs])
    )
