"""Which output holds class scores, and whether they are probabilities already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.bundle import Classification
from edgeserve.bundle.postprocess import Activation
from edgeserve.conversion.answering.facts import (
    Doubt,
    Finding,
    Fit,
    OutputFacts,
    sums_to_one,
    wide,
    within,
)
from edgeserve.tensors import Array

# So many rows must sum to one where no graph says that there is a softmax; logits do not by accident.
_ENOUGH: Final = 4
_SAYS: Final = "--task classification with --postprocess"


def classification(facts: OutputFacts, *, asked: bool) -> Finding:
    """Classes, if the file, labels or labelled samples say so; `asked`: if they can be had at all."""
    rows = {n: r for n in facts.names if facts.is_float(n) and (r := facts.flat(n)) is not None}
    if not rows:
        return _rounded(facts)
    if facts.labels is not None:
        fitting = [n for n, r in rows.items() if _names(len(r[0]), len(facts.labels))]
        because = f"its classes have {len(facts.labels)} labels"
        if not fitting:
            return Doubt(
                f"no output has the {len(facts.labels)} classes that --labels names: {facts.shapes()}"
            )
    elif asked or facts.labelled:
        fitting, because = list(rows), "--task says so" if asked else "the samples have labels"
    else:
        return _by_itself(facts, rows)
    names = _likely(facts, fitting, rows)
    if len(names) != 1:
        return Doubt(
            f"classes may be in {' or '.join(map(facts.shape, names or fitting))}: {_SAYS} says which (output = …)"
        )
    return _fit(facts, names[0], rows[names[0]], because)


def _names(count: int, labels: int) -> bool:
    """Whether `labels` names can be those of `count` scores. A single score is that of the second of two classes."""
    return count == labels or (count == 1 and labels == 2)


def _rounded(facts: OutputFacts) -> Finding:
    """Of models that are quantized, outputs included."""
    for name in facts.names:
        row = facts.flat(name) if facts.is_number(name) else None
        if row and facts.labels is not None and len(row[0]) == len(facts.labels):
            return Doubt(
                f"output {facts.shape(name)} holds rounded scores: they are not made into classes"
            )
    return None


def _likely(facts: OutputFacts, fitting: list[str], rows: dict[str, list[Array]]) -> list[str]:
    """Those of several outputs that hold scores if any do; if there are logits and probabilities, these."""
    names = [n for n in fitting if facts.kind(n) in ("scores", "probabilities")] or fitting
    if len(names) > 1 and len({len(rows[n][0]) for n in names}) == 1:
        proper = [n for n in names if len(rows[n][0]) > 1 and sums_to_one(wide(rows[n]))]
        return proper or names
    return names


def _by_itself(facts: OutputFacts, rows: dict[str, list[Array]]) -> Finding:
    """Without labels: of a softmax over all classes, beside which there is nothing but the class itself."""
    distributions = [
        n
        for n, r in rows.items()
        if len(r[0]) > 1
        and sums_to_one(wide(r))
        and (facts.kind(n) == "scores" or (not facts.has_graph and len(r) >= _ENOUGH))
    ]
    others = [n for n in facts.names if n not in distributions]
    if len(distributions) == 1 and all(facts.kind(n) in ("ids", "text") for n in others):
        (name,) = distributions
        return _fit(facts, name, rows[name], _because(facts, name))
    if distributions:
        return Doubt(
            f"classes may be in {' or '.join(map(facts.shape, distributions))}, and there are other outputs: "
            f"{_SAYS} says which (output = …)"
        )
    maybe = [n for n in rows if facts.kind(n) == "probabilities"]
    if maybe:
        return Doubt(
            f"output {facts.shape(maybe[0])} ends in a sigmoid: probabilities of classes, or numbers from 0 to 1 "
            "(--labels, or --task classification, says that they are classes)"
        )
    return None


def _because(facts: OutputFacts, name: str) -> str:
    kind = facts.kinds.get(name)
    return kind.because if kind is not None and kind.kind == "scores" else "its rows sum to one"


def _fit(facts: OutputFacts, name: str, rows: Sequence[Array], because: str) -> Fit:
    activation, seen = _activation(facts, name, wide(rows))
    seen = f"{because}; {seen}" if seen not in because else because
    return Fit(Classification(name, activation), seen)


def _activation(facts: OutputFacts, name: str, rows: list[Array]) -> tuple[Activation, str]:
    """What makes probabilities of an output, and what shows that."""
    kind = facts.kind(name)
    if kind == "probabilities":
        return "none", "each is a probability"
    if len(rows[0]) == 1:
        certain = within(rows, 0, 1) and (kind == "scores" or not facts.has_graph)
        return ("none", "it is from 0 to 1") if certain else ("sigmoid", "it is a logit")
    if sums_to_one(rows):
        return "none", "its rows sum to one"
    if not facts.has_graph and len(rows) >= _ENOUGH and within(rows, 0, 1):
        return "none", "each is from 0 to 1"
    return "softmax", "they are logits"
