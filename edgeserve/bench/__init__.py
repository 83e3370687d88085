"""Measuring: latency, throughput, load time, memory; always in turns, with what the numbers rest on."""

from edgeserve.bench.report import Report, Settings
from edgeserve.bench.run import bench

__all__ = ["Report", "Settings", "bench"]
