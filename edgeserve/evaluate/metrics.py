"""Fidelity and accuracy as plain numbers from plain arrays: every output by its own kind.

The kinds are given, not guessed from shapes: `kind_of_type` knows what element types alone say, and
`conversion.sources.kinds` what a graph, labels and the user add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import Fidelity, OutputFidelity, OutputKind, Part
from edgeserve.evaluate.parts import BEST_DB, decibels, elements, measure, split, weakest
from edgeserve.tensors import PADDING_MASKS, Array, Interface, Tensors, TensorSpec, unpadded

FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
Kinds = Mapping[str, OutputKind]
# Rarer answers than these are too few to tell how many of them are kept.
MIN_RARE: Final = 8


def kind_of_type(spec: TensorSpec) -> OutputKind:
    """What the element type alone says: whole numbers and texts are answers, floats are numbers."""
    if spec.dtype == "BYTES":
        return OutputKind("text", "its type is BYTES")
    if spec.dtype in FLOATS:
        return OutputKind("numbers", "nothing says that it is anything else")
    return OutputKind("ids", f"its type is {spec.dtype}")


def looks_like_scores(spec: TensorSpec) -> bool:
    """Whether class scores could have this shape: [n, classes] of floats. So could anything else."""
    classes = spec.shape[-1] if len(spec.shape) == 2 else None
    return spec.dtype in FLOATS and isinstance(classes, int) and classes >= 2


def class_scores(interface: Interface, kinds: Kinds) -> str | None:
    """The name of the first output that holds one answer a sample: a class of several, or yes or no."""
    for spec in interface.outputs:
        kind = kinds.get(spec.name) or kind_of_type(spec)
        classes = spec.shape[-1] if len(spec.shape) == 2 else None
        several = kind.kind == "scores" and isinstance(classes, int) and classes >= 2
        if several or (kind.kind in ("scores", "probabilities") and classes == 1):
            return spec.name
    return None


def fidelity(
    interface: Interface,
    kinds: Kinds,
    inputs: Iterable[Tensors],
    reference: Sequence[Tensors],
    outputs: Sequence[Tensors],
) -> Fidelity:
    """Compare a variant's outputs with the source's, sample by sample; every output by its kind.

    Outputs per token are compared where the `inputs` have tokens, not where they have padding.
    Non-finite values where the reference is finite give -200 dB.
    """
    masks = [s.name for s in interface.inputs if s.name in PADDING_MASKS]
    requests = (
        [{n: r[n] for n in masks if n in r} for r in inputs] if masks else [{}] * len(reference)
    )
    found = []
    for spec in interface.outputs:
        kind = kinds.get(spec.name) or kind_of_type(spec)
        want = [
            unpadded(r, _wide(w[spec.name], spec)) for r, w in zip(requests, reference, strict=True)
        ]
        got = [
            unpadded(r, _wide(g[spec.name], spec)) for r, g in zip(requests, outputs, strict=True)
        ]
        found.append(_compared(spec, kind, want, got))
    decided = [o.agreement for o in found if o.kind in ("scores", "probabilities")]
    shown = decided or [o.agreement for o in found if len(found) == 1 and o.kind == "numbers"]
    agreements = [a for a in shown if a is not None]
    return Fidelity(
        samples=len(reference),
        sqnr_db=min((_sqnr(o) for o in found), default=BEST_DB),
        cosine=min((o.cosine for o in found if o.cosine is not None), default=1.0),
        max_abs_error=max((o.max_abs_error for o in found), default=0.0),
        top1_agreement=min(agreements, default=None),
        outputs=tuple(found),
    )


def top1_accuracy(outputs: Sequence[Array], labels: Sequence[int]) -> float:
    """The share of samples whose highest score is at the label's index; of a single number, those which
    are on the label's side of 0.5."""
    answers = [int(decisions(o.reshape(-1), -1)) for o in outputs]
    return float(np.mean([a == label for a, label in zip(answers, labels, strict=True)]))


def decisions(scores: Array, axis: int) -> Array:
    """The answers that scores stand for: the index of the highest, or of one number whether it exceeds 0.5."""
    if scores.shape[axis] == 1:
        return np.asarray(scores.squeeze(axis) > 0.5, np.int64)
    return np.asarray(np.argmax(scores, axis), np.int64)


def _sqnr(output: OutputFidelity) -> float:
    if output.sqnr_db is not None:
        return output.sqnr_db
    return decibels(1.0, 1.0 - (output.agreement or 0.0))


def _wide(array: Array, spec: TensorSpec) -> Array:
    """BF16 travels as the upper halves of float32."""
    if spec.dtype == "BF16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _compared(
    spec: TensorSpec, kind: OutputKind, want: list[Array], got: list[Array]
) -> OutputFidelity:
    same = [w.shape == g.shape for w, g in zip(want, got, strict=True)]
    mismatched = same.count(False)
    if kind.kind in ("ids", "text"):
        agreement, overlap = _agreement(want, got)
        return OutputFidelity(
            spec.name, kind.kind, spec.name, agreement=agreement, overlap=overlap,
            mismatched=mismatched,
        )  # fmt: skip
    kept = [(w, g) for w, g, s in zip(want, got, same, strict=True) if s and w.size]
    found = _floats(spec, kind, [w for w, _ in kept], [g for _, g in kept])
    return msgspec.structs.replace(found, mismatched=mismatched)


def _floats(
    spec: TensorSpec, kind: OutputKind, want: list[Array], got: list[Array]
) -> OutputFidelity:
    """Compare pairs of like shape."""
    found = OutputFidelity(spec.name, kind.kind, spec.name, BEST_DB, BEST_DB)
    if not want:
        return found
    if any(_is_broken(w, g) for w, g in zip(want, got, strict=True)):
        return msgspec.structs.replace(
            found, sqnr_db=-BEST_DB, signal_db=-BEST_DB, agreement=_answers(spec, kind, want, got)[0],
            cosine=0.0, max_abs_error=float(np.finfo(np.float64).max),
        )  # fmt: skip
    sums = elements(want, got)
    parts = split(sums) if kind.kind == "numbers" else [Part()]
    measured = [measure(sums, part) for part in parts]
    worst = min(
        (weakest(sums, m) if kind.kind == "numbers" else m for m in measured),
        key=lambda m: m.sqnr_db,
    )
    total = max(float(sums.count.sum()), 1.0)
    size = measure(msgspec.structs.replace(sums, is_centred=False), Part()).spread
    agreement, overlap = _answers(spec, kind, want, got)
    return OutputFidelity(
        name=spec.name,
        kind=kind.kind,
        worst=worst.part.describe(spec.name, len(spec.shape)),
        sqnr_db=worst.sqnr_db,
        signal_db=decibels(size**2, float(sums.noise.sum()) / total),
        agreement=agreement,
        overlap=overlap,
        cosine=_cosine(want, got),
        max_abs_error=max(_largest(w, g) for w, g in zip(want, got, strict=True)),
        centred=sums.is_centred,
        parts=tuple(measured),
    )


def _answers(
    spec: TensorSpec, kind: OutputKind, want: list[Array], got: list[Array]
) -> tuple[float | None, float | None]:
    """Agreement and overlap of the answers that numbers stand for; of what may not be answers, but looks
    like class scores, agreement alone, for information."""
    if kind.kind == "probabilities":
        return _agreement([w > 0.5 for w in want], [g > 0.5 for g in got])
    if kind.kind == "scores":
        axis = kind.axis
        return _agreement([decisions(w, axis) for w in want], [decisions(g, axis) for g in got])
    if kind.kind == "numbers" and looks_like_scores(spec):
        return _agreement([decisions(w, -1) for w in want], [decisions(g, -1) for g in got])[
            0
        ], None
    return None, None


def _agreement(want: list[Array], got: list[Array]) -> tuple[float, float | None]:
    """The share of equal answers, and the share among those that are not the reference's most common one
    (there or here): a mask that is lost agrees wherever there was none."""
    equal = total = 0
    counts: Counter[object] = Counter()
    for w, g in zip(want, got, strict=True):
        total += max(w.size, g.size)
        if w.shape == g.shape:
            equal += int(np.count_nonzero(w == g))
        for value, count in zip(*np.unique(_plain(w), return_counts=True), strict=True):
            counts[value] += int(count)
    if not total:
        return 1.0, None
    common = counts.most_common(1)[0][0] if counts else None
    rare = kept = 0
    for w, g in zip(want, got, strict=True):
        if w.shape == g.shape:
            other = (_plain(w) != common) | (_plain(g) != common)
            rare += int(np.count_nonzero(other))
            kept += int(np.count_nonzero(other & (w == g)))
        else:
            rare += max(w.size, g.size)
    return equal / total, kept / rare if rare >= MIN_RARE else None


def _plain(array: Array) -> Array:
    """Texts in a form that numpy can sort: a tensor may mix str and bytes."""
    if array.dtype.kind != "O":
        return array
    texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.reshape(-1)]
    return np.array(texts, dtype=bytes).reshape(array.shape)


def _is_broken(want: Array, got: Array) -> bool:
    """Whether values are not finite where the reference's are, or not huge where those are infinite."""
    finite = np.isfinite(want)
    if not np.all(np.isfinite(got[finite])):
        return True
    endless = np.isinf(want)
    if not endless.any():
        return False
    largest = float(np.max(np.abs(want[finite]), initial=0.0))
    return not np.all((got[endless] * np.sign(want[endless])) >= largest)


def _cosine(want: list[Array], got: list[Array]) -> float | None:
    """The mean over samples. Of one number a sample, whose cosine is 1 for any two of one sign, that of
    all samples' numbers around their mean: their correlation."""
    if all(w.size == 1 for w in want):
        series = [np.array([float(x.reshape(-1)[0]) for x in xs]) for xs in (want, got)]
        series = [s[np.isfinite(series[0])] for s in series]
        return _angle(*(s - s.mean() for s in series)) if len(series[0]) > 2 else None
    finite = [np.isfinite(w) for w in want]
    return float(
        np.mean(
            [
                _angle(w[f].astype(np.float64), g[f].astype(np.float64))
                for w, g, f in zip(want, got, finite, strict=True)
            ]
        )
    )


def _angle(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / norms if norms else float(np.array_equal(a, b))


def _largest(want: Array, got: Array) -> float:
    finite = np.isfinite(want)
    wide = want[finite].astype(np.float64) - got[finite].astype(np.float64)
    return float(np.max(np.abs(wide), initial=0.0))
