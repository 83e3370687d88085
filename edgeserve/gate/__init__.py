"""The gate: a bundle held to limits of size, speed, memory and quality."""

from edgeserve.gate.config import Config, Limit, load_config
from edgeserve.gate.report import GateReport, Row
from edgeserve.gate.run import gate

__all__ = ["Config", "GateReport", "Limit", "Row", "gate", "load_config"]
