"""A gate's report for people: every check, and what to do about those that did not pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.bench.exports.table import print_skipped
from edgeserve.gate.report import BudgetCheck, GateReport
from edgeserve.tables import print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console


def export(report: GateReport, console: Console) -> None:
    """The last line is the verdict."""
    on = next((f" on {r.limit_text}" for r in report.rows if r.budget == "device"), "")
    judged = f"{report.candidate}, the first candidate of {report.bundle}{on} that opens here"
    print_line(console, f"judged   {judged}")
    print_line(console, f"machine  {report.environment.machine.describe()}\n")
    columns = ("budget", "limit", "measured", "verdict", "source")
    rows = [(r.budget, r.limit_text, r.measured_text, r.verdict, r.source) for r in report.rows]
    print_table(console, columns, rows, right=("limit", "measured"))
    console.print()
    for row in report.rows:
        _print_check(console, row)
    for skipped in report.skipped:
        print_skipped(console, skipped)
    for warning in report.warnings:
        print_line(console, f"warning: {warning.message}")
        print_line(console, f"         -> {warning.advice}")
    print_line(console, _conclusion(report))


def _print_check(console: Console, row: BudgetCheck) -> None:
    """What to know, and what to do, about a row that did not simply pass."""
    if row.verdict == "pass":
        return
    if row.verdict == "fail" and row.measured is not None:
        print_line(console, f"fail: {row.budget} is {row.measured_text}, the limit is {row.limit_text}"
             + (f" ({row.note})" if row.note else ""))  # fmt: skip
    else:
        print_line(console, f"{row.verdict}: {row.budget}: {row.note}")
    if row.remedy:
        print_line(console, f"      -> {row.remedy}")
    if row.where and row.verdict in ("fail", "warn"):
        print_line(console, f"      -> or change the limit: {row.where}")


def _conclusion(report: GateReport) -> str:
    count = {v: sum(r.verdict == v for r in report.rows) for v in ("fail", "unmeasured", "warn")}
    if report.verdict == "fail":
        return f"gate: FAILED, {count['fail']} of {len(report.rows)} checks missed"
    if report.verdict == "unmeasured":
        return f"gate: NOT MEASURED, {count['unmeasured']} of {len(report.rows)} checks"
    noise = f", {count['warn']} with a warning" if count["warn"] else ""
    return f"gate: passed, {len(report.rows)} checks{noise}"
