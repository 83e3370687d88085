"""The result of a gate: what `--json` prints and what the table is made from."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgeserve.bench.environment import Environment
from edgeserve.bench.subjects import Skipped
from edgeserve.bench.warnings import BenchWarning

SCHEMA: Final = "edgeserve-gate/1"

# `warn` passes: the value is within noise of the limit, or a value that does not decide misses it.
Verdict = Literal["pass", "warn", "fail", "unmeasured"]


class BudgetCheck(msgspec.Struct, frozen=True):
    """One check of one budget. `limit` and `measured` are in the budget's unit (bytes, ms, points,
    shares, dB, ratios), the texts are for people; `where` is the place to change the limit."""

    budget: str
    limit: float
    limit_text: str
    measured: float | None
    measured_text: str
    verdict: Verdict
    source: str
    where: str | None = None
    note: str | None = None
    remedy: str | None = None


class GateReport(msgspec.Struct, frozen=True):
    """What a bundle was held to on this machine. `candidate` is the one that was judged, `skipped`
    those before it in the chain that this machine does not open."""

    schema: str
    bundle: str
    name: str
    config: str | None
    candidate: str
    verdict: Verdict
    rows: tuple[BudgetCheck, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[BenchWarning, ...]
    environment: Environment

    @property
    def exit_code(self) -> int:
        """0 all budgets are met, 1 one is missed, 3 one could not be measured."""
        return {"pass": 0, "warn": 0, "fail": 1, "unmeasured": 3}[self.verdict]


def overall(rows: tuple[BudgetCheck, ...]) -> Verdict:
    """A missed budget outweighs one that could not be measured, and that one everything else."""
    verdicts = {row.verdict for row in rows}
    order: tuple[Verdict, ...] = ("fail", "unmeasured", "warn")
    return next((v for v in order if v in verdicts), "pass")
