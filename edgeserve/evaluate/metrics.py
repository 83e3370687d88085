"""Fidelity and accuracy as plain numbers from plain arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgeserve.bundle import Fidelity
from edgeserve.tensors import Array, Interface, Tensors, unpadded


def class_scores(interface: Interface) -> str | None:
    """The name of the output that holds class scores, or None.

    That is a single float output of shape [n, classes] with at least two classes.
    """
    if len(interface.outputs) != 1:
        return None
    (output,) = interface.outputs
    if output.dtype not in ("FP32", "FP16", "FP64") or len(output.shape) != 2:
        return None
    classes = output.shape[1]
    return output.name if isinstance(classes, int) and classes >= 2 else None


def fidelity(
    interface: Interface,
    inputs: Iterable[Tensors],
    reference: Sequence[Tensors],
    outputs: Sequence[Tensors],
) -> Fidelity:
    """Compare a variant's outputs with the source's, sample by sample, over all outputs but texts.

    Outputs per token are compared where the `inputs` have tokens, not where they have padding.

    SQNR follows its usual definition, 10*log10(signal power / error power), over all samples and
    outputs together; cosine is the mean over samples. Outputs of integer or string type count by
    equality, as error 0 or 1. Non-finite values where the reference is finite give -inf dB.
    """
    signal = noise = worst = 0.0
    cosines: list[float] = []
    for request, want, got in zip(inputs, reference, outputs, strict=True):
        a, b = _flat(interface, request, want), _flat(interface, request, got)
        a, b = _comparable(a, b)
        if not np.all(np.isfinite(b)):
            signal, noise, worst = 1.0, float("inf"), float("inf")
            cosines.append(0.0)
            continue
        signal += float(np.dot(a, a))
        noise += float(np.dot(a - b, a - b))
        worst = max(worst, float(np.max(np.abs(a - b), initial=0.0)))
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosines.append(float(np.dot(a, b)) / norms if norms else float(np.array_equal(a, b)))
    scores = class_scores(interface)
    agreement = None
    if scores is not None:
        agreement = float(
            np.mean([_top1(w[scores]) == _top1(g[scores]) for w, g in _rows(reference, outputs)])
        )
    return Fidelity(
        samples=len(reference),
        sqnr_db=_decibels(signal, noise),
        cosine=float(np.mean(cosines)),
        max_abs_error=min(worst, float(np.finfo(np.float64).max)),
        top1_agreement=agreement,
    )


def top1_accuracy(outputs: Sequence[Array], labels: Sequence[int]) -> float:
    """The share of samples whose highest score is at the label's index."""
    return float(np.mean([_top1(o) == label for o, label in zip(outputs, labels, strict=True)]))


def _rows(a: Sequence[Tensors], b: Sequence[Tensors]) -> list[tuple[Tensors, Tensors]]:
    return list(zip(a, b, strict=True))


def _top1(scores: Array) -> int:
    return int(np.argmax(scores.reshape(-1)))


def _flat(interface: Interface, request: Tensors, tensors: Tensors) -> Array:
    numbers = [tensors[s.name] for s in interface.outputs if s.dtype != "BYTES"]
    parts = [unpadded(request, array).reshape(-1) for array in numbers]
    return np.concatenate([p.astype(np.float64) for p in parts]) if parts else np.zeros(0)


def _comparable(a: Array, b: Array) -> tuple[Array, Array]:
    """Leave out what is not finite in the reference itself."""
    finite = np.isfinite(a)
    return a[finite], b[finite]


def _decibels(signal: float, noise: float) -> float:
    # JSON has no infinity: identical outputs read 200 dB, more than fp32 can express; garbage -200.
    if noise == 0.0:
        return 200.0
    if signal == 0.0 or not np.isfinite(noise):
        return -200.0
    return float(np.clip(10.0 * np.log10(signal / noise), -200.0, 200.0))
