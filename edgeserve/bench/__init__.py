"""Measuring: latency, throughput, load time, memory; always in turns, with what the numbers rest on."""
