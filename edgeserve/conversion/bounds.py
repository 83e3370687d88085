"""What a variant may cost in quality, and whether it keeps within that: judged output by output."""

from __future__ import annotations

from typing import Final

from edgeserve.bundle import (
    Accuracy,
    Fidelity,
    OutputFidelity,
    Precision,
)
from edgeserve.bundle.fidelity import Kind
from edgeserve.conversion.options import Demands

# Minimum signal in dB of precisions that promise the source's numbers: with less the conversion is broken.
MIN_SIGNAL_DB = {"fp32": 40.0, "fp16": 30.0, "bf16": 20.0}
# A tenth of the variance may be error (an R2 of 0.9); of class scores, whose order counts, half.
DEFAULT_MIN_SQNR_DB = 10.0
DEFAULT_MIN_SCORES_SQNR_DB = 3.0
DEFAULT_MIN_AGREEMENT = 0.95
DEFAULT_MIN_COSINE = 0.99
# Of the answers that are not the most common one.
MIN_OVERLAP = 0.7
_ANSWERS: Final = {
    "scores": "top-1 agrees with the source",
    "probabilities": "its decisions at 0.5 agree with the source",
    "ids": "it equals the source",
    "text": "it equals the source",
}


class Bounds(Demands, frozen=True, kw_only=True):
    """What is demanded of variants, for one source on one machine.

    `speed_counts` is False when the target's CPU is not this one. `source` is the precision of the source:
    variants of a quantized one are held to its bar, whatever they are called.
    """

    speed_counts: bool = True
    source: Precision = "fp32"

    @classmethod
    def of(cls, demands: Demands, source: Precision, *, speed_counts: bool) -> Bounds:
        asked = {name: getattr(demands, name) for name in Demands.__struct_fields__}
        return cls(**asked, source=source, speed_counts=speed_counts)

    def asked_sqnr(self, output: str) -> float | None:
        return self.min_sqnr_of.get(output, self.min_sqnr)

    def sqnr(self, output: str, kind: Kind) -> float | None:
        """The least SQNR in dB of an output; None where nothing is asked for: `min_fidelity` 0 says so."""
        asked = self.asked_sqnr(output)
        if asked is not None:
            return asked
        if self.min_fidelity == 0.0:
            return None
        return DEFAULT_MIN_SCORES_SQNR_DB if kind == "scores" else DEFAULT_MIN_SQNR_DB


def quality_problem(
    fidelity: Fidelity, accuracy: Accuracy | None, precision: Precision, bounds: Bounds
) -> str | None:
    """Why this variant is too far from the source, or None. Each output is judged by its kind, and the
    first that misses a bound decides, the worst one first."""
    if bounds.source in ("int8", "int4"):
        precision = bounds.source  # its own numbers are no closer to the truth than that
    if accuracy is not None:
        drop = accuracy.drop_points
        # Shares of samples are exact multiples of 1/n: allow for rounding at the limit itself.
        if drop > bounds.max_drop + 1e-9:
            return f"accuracy drops {drop:.2f} points, --max-drop is {bounds.max_drop:g}"
    labelled = accuracy.output if accuracy is not None else None
    for output in sorted(fidelity.outputs, key=lambda o: o.sqnr_db if o.sqnr_db is not None else 0):
        problem = _broken(output, precision) or _shapes(output, fidelity.samples, bounds)
        if problem is None and output.name == labelled:
            asked = bounds.asked_sqnr(output.name)  # accuracy decides, unless more was asked for
            problem = None if asked is None else _noise(output, asked)
        elif problem is None:
            problem = _answers(output, bounds) or _noise(
                output, bounds.sqnr(output.name, output.kind)
            )
        if problem is not None:
            return problem
    return None


def _broken(output: OutputFidelity, precision: Precision) -> str | None:
    floor = MIN_SIGNAL_DB.get(precision)
    if floor is None or output.signal_db is None or output.signal_db >= floor:
        return None
    return (
        f"its numbers differ too much from the source's: output '{output.name}' keeps {output.signal_db:.1f} dB of its "
        f"signal, {precision} must keep {floor:.0f}"
    )


def _shapes(output: OutputFidelity, samples: int, bounds: Bounds) -> str | None:
    wanted = DEFAULT_MIN_AGREEMENT if bounds.min_fidelity is None else bounds.min_fidelity
    if output.mismatched <= (1.0 - wanted) * samples + 1e-9:
        return None
    return (
        f"output '{output.name}' has another shape than the source's on {output.mismatched} of "
        f"{samples} samples"
    )


def _answers(output: OutputFidelity, bounds: Bounds) -> str | None:
    """Why too few answers of an output are the source's, or its direction is another. Of numbers, neither
    says anything: their cosine counts only where it was asked for."""
    asked = bounds.min_fidelity
    if output.kind in _ANSWERS:
        wanted = DEFAULT_MIN_AGREEMENT if asked is None else asked
        if output.agreement is not None and output.agreement < wanted:
            return (
                f"output '{output.name}': {_ANSWERS[output.kind]} on {100 * output.agreement:.1f} % of "
                f"samples, --min-fidelity is {100 * wanted:g} %"
            )
        least = min(MIN_OVERLAP, wanted)
        if output.overlap is not None and output.overlap < least:
            return (
                f"output '{output.name}': of the answers other than the most common one, "
                f"{100 * output.overlap:.1f} % match the source; at least {100 * least:g} % must"
            )
        return None
    wanted = DEFAULT_MIN_COSINE if asked is None and output.kind == "embedding" else asked or 0.0
    if output.cosine is not None and output.cosine < wanted:
        return (
            f"output '{output.name}': cosine to the source is {output.cosine:.6g}, --min-fidelity is "
            f"{wanted:g}"
        )
    return None


def _noise(output: OutputFidelity, wanted: float | None) -> str | None:
    if wanted is None or output.sqnr_db is None or output.sqnr_db >= wanted:
        return None
    beside = (
        "spread over samples" if output.centred else "size (too few samples to know its spread)"
    )
    return (
        f"output '{output.worst}': SQNR {output.sqnr_db:.1f} dB against its {beside}, --min-sqnr is "
        f"{wanted:g} dB"
    )
