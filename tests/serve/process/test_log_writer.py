"""Log lines and a reader that stops reading."""

from __future__ import annotations

import logging
import os
import re

from edgeserve.serve.process.log_writer import LogWriter
from tests.waiting import wait_for


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("t", logging.WARNING, __file__, 1, text, (), None)


def test_lines_are_written_in_order() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for number in range(100):
        writer.handle(record(f"line {number}"))
    writer.flush()
    assert os.read(reading, 1 << 16).decode().splitlines() == [f"line {n}" for n in range(100)]
    os.close(reading)
    os.close(writing)


def test_a_reader_that_stops_costs_lines_and_no_time() -> None:
    """Nothing is read until all is written: a writer that waited would wait for ever."""
    reading, writing = os.pipe()
    writer = LogWriter(writing, room=100_000)
    for number in range(10_000):
        writer.handle(record(f"line {number} " + 40 * "x"))
    assert writer.dropped > 5_000
    text, numbers, lost = b"", [0], 0
    while len(numbers) + lost < 10_000:  # each line is written or counted
        text += os.read(reading, 1 << 16)
        numbers = [int(n) for n in re.findall(rb"^line (\d+) x{40}\n", text, re.MULTILINE)]
        lost = sum(map(int, re.findall(rb"(\d+) log lines were dropped", text)))
    # In order, and whole. When the writer's thread comes late, room for later lines follows lost ones.
    assert numbers == sorted(set(numbers))
    assert (len(numbers) + lost, lost) == (10_000, writer.dropped)
    writer.handle(record("again"))
    while b"again" not in text:
        text += os.read(reading, 1 << 16)
    os.close(reading)
    os.close(writing)


def test_lines_that_nobody_will_read_are_counted() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    os.close(reading)
    writer.handle(record("lost"))
    wait_for(lambda: writer.dropped == 1)
    os.close(writing)
