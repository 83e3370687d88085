"""Measuring: latency, throughput, load time, memory; always in turns, with what the numbers rest on."""

from edgeserve.bench.measurement import BenchSettings
from edgeserve.bench.report import BenchReport
from edgeserve.bench.run import bench

__all__ = ["BenchReport", "BenchSettings", "bench"]
