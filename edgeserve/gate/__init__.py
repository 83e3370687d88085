"""The gate: a bundle held to limits of size, speed, memory and quality."""

from edgeserve.gate.config import Config, Limit, load_config
from edgeserve.gate.report import BudgetCheck, GateReport
from edgeserve.gate.run import gate

__all__ = ["BudgetCheck", "Config", "GateReport", "Limit", "gate", "load_config"]
