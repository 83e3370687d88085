"""What this machine has for running models: installed, opening, clashing, hot. Behind `edgeserve doctor`."""

from edgeserve.diagnosis.diagnose import Diagnosis, diagnose
from edgeserve.diagnosis.findings import Finding, Memory
from edgeserve.diagnosis.packages import Package

__all__ = ["Diagnosis", "Finding", "Memory", "Package", "diagnose"]
