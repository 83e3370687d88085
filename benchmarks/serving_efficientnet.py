"""CPU of a served EfficientNet-Lite0 image against the bare engine's. Part of serving.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.load import Question, closed_loop, open_loop
from benchmarks.servers import Running, Start, ask_edgeserve, edgeserve, inputs, on_cores, started

BARE = """
import sys, time, numpy as np
from edgeserve.bundle import Bundle
from edgeserve.chain import open_candidate
bundle = Bundle.open(sys.argv[1])
session = open_candidate(bundle, bundle.manifest.chain[0], threads=1, spin=False)
images = list(np.load(sys.argv[2]))
for line in sys.stdin:
    n, cpu, end = 0, time.process_time(), time.perf_counter() + float(line)
    while time.perf_counter() < end:
        session.run({"image": images[n % len(images)]}); n += 1
    print(1e6 * (time.process_time() - cpu) / n, flush=True)
"""


class BareEngine:
    """A process that runs the bundle's first candidate on the images in turn, one thread, nothing else."""

    def __init__(self, bundle: Path, images: Path, core: int) -> None:
        with on_cores({core}):
            self._process = subprocess.Popen(
                [sys.executable, "-c", BARE, str(bundle), str(images)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip
        self.cpu_us(0.5)  # warm

    def cpu_us(self, seconds: float) -> float:
        """CPU of an image."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@dataclass(frozen=True)
class Case:
    """How EfficientNet is served: the form of the answer, connections, further flags of the server."""

    form: str
    connections: int
    flags: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return " ".join((f"{self.form} answer, {self.connections} connections", *self.flags))


BATCHES = ("--preferred-batch", "4")
CASES = (Case("binary", 2), Case("JSON", 2), Case("binary", 8), Case("binary", 8, BATCHES))


@dataclass
class EfficientNet:
    """CPU of an image (us) in the bare engine and served, by case; how the servers started, by their flags;
    and what the open loop saw. The ratios are the quartiles over pairs."""

    bare_us: list[float]
    served_us: dict[str, list[float]]
    ratios: dict[str, tuple[float, ...]]
    starts: dict[str, list[Start]]
    rate: float
    requests: int
    wrong: int
    p50_ms: float
    p99_ms: float
    ready_ms: float
    memory_mb: float


def photographs(bundle: Path, images: Sequence[np.ndarray]) -> dict[str, list[Question]]:
    """Binary images, answered with 1000 numbers in binary, too, or as JSON."""
    from edgeserve.bundle import Bundle
    from edgeserve.chain import open_candidate

    opened = Bundle.open(bundle)
    session = open_candidate(opened, opened.manifest.chain[0], threads=1, spin=False)
    asked: dict[str, list[Question]] = {"binary": [], "JSON": []}
    for x in images:
        expected = session.run({"image": x})["logits"].ravel()
        for form, questions in asked.items():
            question = ask_edgeserve("image", x, opened.name, binary_answer=form == "binary")
            question.expected = expected
            # Batches of another size are computed in another order: int8 differs by a step now and then.
            question.tolerance = 0.02 * float(np.abs(expected).max())
            questions.append(question)
    session.close()
    return asked


def efficientnet(bundle: Path, arguments: argparse.Namespace, log: Path) -> EfficientNet:
    """Engine and server are started once a round and take turns of a second: a neighbour that comes or
    goes meets both."""
    images = inputs("image")
    asked = photographs(bundle, images)
    file = log.with_name("images.npy")
    np.save(file, np.stack(images))
    bundles, core, slices = {"image": bundle}, arguments.cores[0], max(1, round(arguments.seconds))
    bare: list[float] = []
    served: dict[str, list[float]] = {case.label: [] for case in CASES}
    ratios: dict[str, list[float]] = {case.label: [] for case in CASES}
    starts: dict[str, list[Start]] = {}
    for _ in range(arguments.rounds):
        engine = BareEngine(bundle, file, core)
        with contextlib.ExitStack() as stack:
            servers = {
                flags: stack.enter_context(
                    started(edgeserve(bundles, *flags), "image", bundle, {core}, log)
                )
                for flags in {case.flags for case in CASES}
            }
            for flags, running in servers.items():
                starts.setdefault(" ".join(flags), []).append(running.start)
            for _ in range(2 * slices):
                for case in CASES:
                    before = engine.cpu_us(0.5)
                    us = served_cpu_us(servers[case.flags], asked[case.form], case.connections, 1.0)
                    around = (before + engine.cpu_us(0.5)) / 2
                    bare.append(around)
                    served[case.label].append(us)
                    ratios[case.label].append(us / around)
        engine.close()
    flags = ("--instances", "2")
    cores = set(arguments.cores)
    os.sched_setaffinity(0, cores)
    questions = asked["JSON"]
    with started(edgeserve(bundles, *flags), "image", bundle, cores, log) as running:
        closed_loop(running.port, questions, 4, 1.0)
        load = open_loop(running.port, questions, arguments.rate, 64, max(5.0, arguments.seconds))
        start = running.start
    return EfficientNet(
        bare, served, {label: tuple(statistics.quantiles(r)) for label, r in ratios.items()}, starts,
        arguments.rate, load.requests, load.wrong,
        load.percentile_ms(0.5), load.percentile_ms(0.99), start.ready_ms, start.memory_mb,
    )  # fmt: skip


def served_cpu_us(
    running: Running, questions: Sequence[Question], connections: int, seconds: float
) -> float:
    closed_loop(running.port, questions, connections, 0.1)
    cpu = running.threads_cpu_s()
    load = closed_loop(running.port, questions, connections, seconds)
    cpu = running.threads_cpu_s() - cpu
    if load.wrong:
        raise SystemExit(f"{load.wrong} wrong answers of {load.requests}")
    return 1e6 * cpu / load.requests


def show_efficientnet(result: EfficientNet) -> None:
    bare = statistics.median(result.bare_us)
    print(f"\nEfficientNet-Lite0 int8: {bare:.0f} us CPU an image in the bare engine")
    for label, (lower, ratio, upper) in result.ratios.items():
        us = statistics.median(result.served_us[label])
        count = len(result.served_us[label])
        print(
            f"served, {label}: {us:.0f} us, {ratio:.3f} times (median of {count} pairs, "
            f"half of them within {lower:.3f} to {upper:.3f})"
        )
    for flags, starts in sorted(result.starts.items()):
        ready = statistics.median(s.ready_ms for s in starts)
        memory = statistics.median(s.memory_mb for s in starts)
        print(f"edgeserve run {flags}: ready after {ready:.0f} ms, {memory:.0f} MB")
    print(
        f"open loop, {result.rate:.0f} requests/s: p50 {result.p50_ms:.1f} ms, "
        f"p99 {result.p99_ms:.1f} ms, {result.wrong} wrong of {result.requests}"
    )
