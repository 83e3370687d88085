"""How close outputs are to the source's, as records: what kind an output is, what was measured, what is
tolerated on the golden samples. Numbers are computed in `evaluate` and checked in `chain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

# scores: one class of several is the answer, along an axis. probabilities: each number from 0 to 1 is
# an answer by itself. numbers: anything else in floating point.
Kind = Literal["scores", "probabilities", "numbers", "embedding", "ids", "text"]
# First and last index (exclusive) of neighbouring slices of a tensor along an axis.
Span = tuple[int, int]


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of manifest records. Unknown fields are ignored: a newer minor version may add some."""


class OutputKind(Record, frozen=True):
    """What an output holds, and `because` of what: the measure it is judged by follows from that.

    `axis` counts from the end of the shape; scores are compared along it.
    """

    kind: Kind
    because: str
    axis: int = -1


class Part(Record, frozen=True):
    """Some slices of an output along `axis`, counted from the end. Without `spans`: the whole output."""

    axis: int = -1
    spans: tuple[Span, ...] = ()

    def describe(self, name: str, rank: int) -> str:
        """As numpy writes it: `boxes[:,4:6]`."""
        if not self.spans:
            return name
        places = ",".join(f"{a}" if b == a + 1 else f"{a}:{b}" for a, b in self.spans)
        if len(self.spans) > 1:
            places = f"[{places}]"
        before = "..." if self.axis == -1 and rank > 2 else ",".join(":" * max(0, rank + self.axis))
        return f"{name}[{before + ',' if before else ''}{places}]"


class PartFidelity(Record, frozen=True):
    """One part of an output: `spread` is the standard deviation of the reference over samples, in the
    output's unit; `sqnr_db` is 20*log10(spread / RMS error)."""

    part: Part
    spread: float
    sqnr_db: float


class OutputFidelity(Record, frozen=True):
    """How close one output is to the source's.

    `sqnr_db` is that of the worst part, called `worst`; `signal_db` is 10*log10(sum(reference**2) /
    sum(error**2)) over the whole output; `agreement` the share of equal answers (top-1, decisions at 0.5,
    ids, texts), `overlap` that among answers which are not the most common one; `cosine` the mean over
    samples. None is what does not apply. `mismatched` counts samples of another shape than the source's.
    `centred` is False where there were too few values to know a spread: their size stands in for it.
    """

    name: str
    kind: Kind
    worst: str
    sqnr_db: float | None = None
    signal_db: float | None = None
    agreement: float | None = None
    overlap: float | None = None
    cosine: float | None = None
    max_abs_error: float = 0.0
    mismatched: int = 0
    centred: bool = True
    parts: tuple[PartFidelity, ...] = ()


class Fidelity(Record, frozen=True):
    """How close a variant's outputs are to the fp32 source's, on `samples` inputs.

    The numbers are those of the worst of the `outputs`: the least `sqnr_db` (against the spread of
    each part of an output over samples), the least mean `cosine`, the least `top1_agreement` (a share of
    samples, absent for models without anything like class scores).
    """

    samples: int
    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: float | None = None
    outputs: tuple[OutputFidelity, ...] = ()

    @property
    def least_agreement(self) -> float | None:
        """The least share of answers that are the source's, over all outputs that hold answers."""
        shares = [
            o.agreement for o in self.outputs if o.kind != "numbers" and o.agreement is not None
        ]
        return min(shares, default=self.top1_agreement)

    @property
    def worst(self) -> OutputFidelity | None:
        """The output with the least SQNR, or the least agreement where none has an SQNR."""
        return min(
            self.outputs,
            key=lambda o: (o.sqnr_db is None, o.sqnr_db or 0.0, o.agreement or 0.0),
            default=None,
        )


class Accuracy(Record, frozen=True):
    """Top-1 on labelled data, as shares of `samples`; `reference` is the fp32 source's. `output` is the
    one that holds the class scores."""

    samples: int
    top1: float
    reference: float
    data_sha256: str
    output: str | None = None

    @property
    def drop_points(self) -> float:
        """Percentage points lost against the fp32 source (negative: gained)."""
        return 100.0 * (self.reference - self.top1)


class PartTolerance(Record, frozen=True):
    """The RMS error that one part may show on the golden samples, in the output's own unit."""

    part: Part
    rms: float


class OutputTolerance(Record, frozen=True):
    """What one output may differ by on the golden samples: `parts` for floating point, else a share of
    `differing` elements; and how many samples may have another shape."""

    name: str
    parts: tuple[PartTolerance, ...] = ()
    differing: float = 0.0
    mismatched: int = 0


def spans_of(indices: Sequence[int]) -> tuple[Span, ...]:
    """Ascending indices as runs: 0, 1, 2, 5 is (0, 3), (5, 6)."""
    spans: list[Span] = []
    for index in indices:
        if spans and spans[-1][1] == index:
            spans[-1] = (spans[-1][0], index + 1)
        else:
            spans.append((index, index + 1))
    return tuple(spans)
