"""A benchmark's whole report as JSON, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.bench.report import BenchReport
from edgeserve.exporting import to_json

if TYPE_CHECKING:
    from rich.console import Console


def export(report: BenchReport, console: Console) -> None:
    console.file.write(to_json(report) + "\n")
