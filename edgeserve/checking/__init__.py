"""Checking a model against targets before anything is converted: operators, shapes, size, memory."""

from __future__ import annotations

from edgeserve.checking.check import check
from edgeserve.checking.report import CheckReport, Estimate, Finding, TargetReport
from edgeserve.checking.sarif import to_sarif

__all__ = ["CheckReport", "Estimate", "Finding", "TargetReport", "check", "to_sarif"]
