"""Which output is an embedding."""

from __future__ import annotations

from edgeserve.bundle import Embedding
from edgeserve.conversion.answering.facts import Doubt, Finding, Fit, OutputFacts


def embedding(facts: OutputFacts, *, asked: bool) -> Finding:
    """The only output that is a vector and, unless `asked`, known to be an embedding."""
    vectors = {n: r for n in facts.names if facts.is_float(n) and (r := facts.flat(n)) is not None}
    vectors = {n: r for n, r in vectors.items() if len(r[0]) > 1}
    known = [n for n in vectors if facts.kind(n) == "embedding"]
    names = known or (list(vectors) if asked else [])
    others = [n for n in facts.names if facts.kind(n) not in ("embedding", "ids", "text")]
    if len(names) == 1 and (asked or not others):
        because = facts.kinds[names[0]].because if known else "--task says so"
        return Fit(Embedding(names[0]), because)
    if names:
        return Doubt(
            f"the embedding may be {' or '.join(map(facts.shape, names))}: --task embedding with --postprocess "
            "says which (output = …)"
        )
    per_token = [n for n in facts.names if facts.kind(n) == "embedding"]
    if per_token:
        return Doubt(
            f"output {facts.shape(per_token[0])} holds several vectors a row: the model itself must pool them to give "
            "an embedding"
        )
    return None
