"""A gate's whole report as JSON, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.exporting import to_json
from edgeserve.gate.report import GateReport

if TYPE_CHECKING:
    from rich.console import Console


def export(report: GateReport, console: Console) -> None:
    console.file.write(to_json(report) + "\n")
