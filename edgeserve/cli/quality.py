"""Flags and table cells that are about how close outputs are to the source's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edgeserve.errors import UsageError

if TYPE_CHECKING:
    from edgeserve.bundle import Fidelity


# More than fp32 can express: nothing differs.
_EXACT_DB: Final = 200.0


def parse_decibels(texts: list[str]) -> dict[str, float]:
    """`--min-sqnr` as dB by output; "" is all outputs. Raises UsageError."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number.strip().lower().removesuffix("db"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(
                f"--min-sqnr {text} is not a number of dB",
                hint="--min-sqnr 12, --min-sqnr boxes=20",
            )
        found[name] = value
    return found


def parse_kinds(texts: list[str]) -> dict[str, str]:
    """`--output-kind` by output; "" is the only one."""
    pairs = (text.rpartition("=") for text in texts)
    return {name: kind for name, _, kind in pairs}


def agreement_text(fidelity: Fidelity) -> str:
    """The least share of answers that are the source's, or the cosine of what has no answers."""
    least = fidelity.least_agreement
    if least is None:
        return f"cos {fidelity.cosine:.4f}"
    decides = not fidelity.outputs or any(o.kind != "numbers" for o in fidelity.outputs)
    # In brackets: top-1 of what only looks like class scores, which decides nothing.
    return f"{100 * least:.1f} %" if decides else f"({100 * least:.1f} %)"


def worst_text(fidelity: Fidelity) -> str:
    """The output, or the part of one, that the SQNR is of."""
    worst = fidelity.worst
    if fidelity.sqnr_db >= _EXACT_DB:
        return ""
    several = len(fidelity.outputs) > 1 or (worst is not None and len(worst.parts) > 1)
    return worst.worst if worst is not None and several else ""
