"""What `edgeserve run --workers 2` gains over one process: a tiny model, asked as JSON over HTTP and over gRPC.

    python benchmarks/workers.py [-o workers.json]

Both servers run for the whole time and are asked in turns by a client in a process of its own, which is
kept on the last core; the servers may use all of them. So where there are two cores, the second worker has
what the client leaves of its core. CPU is that of all the server's processes, the one that supervises
included, divided by requests; every answer is compared. The medians of the rounds are printed, and the
ratio of the rates within each round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.grpc_overhead import ask, questions  # noqa: E402
from benchmarks.load import Load, Question, closed_loop  # noqa: E402
from benchmarks.serving_overhead import request  # noqa: E402
from tests.bundles import linear, linear_bundle  # noqa: E402

WORKERS = (1, 2)
CONNECTIONS = (8, 64)
CALLS = 1_500


@dataclass
class Server:
    """`edgeserve run --workers N`, and where it listens."""

    workers: int
    process: subprocess.Popen[str]
    http: int
    grpc: str

    def cpu_s(self) -> float:
        """User and system time of all its processes."""
        one = psutil.Process(self.process.pid)
        times = [p.cpu_times() for p in (one, *one.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def resident_mb(self) -> float:
        one = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (one, *one.children(recursive=True))) / 1e6


@dataclass
class Row:
    """One line of the result; a value of each round. `busy` is the client's share of its core."""

    what: str
    workers: int
    rate: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def start(bundle: Path, workers: int) -> Server:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "edgeserve", "run", str(bundle), "--workers", str(workers),
            "--http-port", "0", "--grpc-port", "0",
        ],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    printed = ""
    for line in process.stderr:
        printed += line
        if line.startswith("try: "):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    http = re.search(r"http://[^:]+:(\d+)", printed)
    grpc = re.search(r"gRPC: (\S+:\d+)", printed)
    if http is None or grpc is None:
        raise SystemExit(f"the server did not start:\n{printed}")
    return Server(workers, process, int(http[1]), grpc[1])


def http_client(port: int, connections: int, seconds: float, result: Any) -> None:
    """In a process of its own, on the last core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    question = Question(
        request("linear"),
        np.ravel(linear(np.float32([[1, 2, 3, 4]]))),
        lambda answer: answer["outputs"][0]["data"],
    )
    result.put(closed_loop(port, [question], connections, seconds))


def over_http(context: Any, server: Server, row: Row, connections: int, seconds: float) -> None:
    for duration in (0.3, seconds):  # the first one warms up
        queue, before = context.Queue(), server.cpu_s()
        client = context.Process(
            target=http_client, args=(server.http, connections, duration, queue)
        )
        client.start()
        load: Load = queue.get()
        client.join()
        used = server.cpu_s() - before
    if load.wrong:
        raise SystemExit(f"{load.wrong} answers were wrong")
    row.rate.append(load.rate)
    row.cpu_us.append(1e6 * used / load.requests)
    row.p50_ms.append(load.percentile_ms(0.5))
    row.p99_ms.append(load.percentile_ms(0.99))
    row.busy.append(load.busy)


def over_grpc(context: Any, server: Server, row: Row, connections: int) -> None:
    go, queue = context.Event(), context.Queue()
    client = context.Process(
        target=ask, args=(server.grpc, questions()["linear"], connections, CALLS, go, queue)
    )
    client.start()
    os.sched_setaffinity(client.pid, {max(os.sched_getaffinity(0))})
    queue.get()
    before = server.cpu_s()
    go.set()
    seconds, wrong = queue.get()
    client.join()
    if wrong:
        raise SystemExit(f"{wrong} answers were wrong")
    row.rate.append(CALLS / seconds)
    row.cpu_us.append(1e6 * (server.cpu_s() - before) / CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = linear_bundle(Path(scratch))
        servers = [start(bundle, workers) for workers in WORKERS]
        for connections in CONNECTIONS:
            these = [Row(f"HTTP, JSON, {connections} connections", w) for w in WORKERS]
            rows += these
            for _ in range(arguments.rounds):
                for server, row in zip(servers, these, strict=True):
                    over_http(context, server, row, connections, arguments.seconds)
        these = [Row("gRPC, 8 connections", w) for w in WORKERS]
        rows += these
        for _ in range(arguments.rounds):
            for server, row in zip(servers, these, strict=True):
                over_grpc(context, server, row, 8)
        memory = {server.workers: server.resident_mb() for server in servers}
        for server in servers:
            server.process.terminate()
            server.process.wait()
    show(rows, memory)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def show(rows: list[Row], memory: dict[int, float]) -> None:
    def median(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):,.{digits}f}" if values else ""

    print(f"{len(os.sched_getaffinity(0))} cores, the client on the last one")
    head = ("requests/s", "CPU us", "p50 ms", "p99 ms", "client busy")
    print(f"{'':32}{'workers':>8}" + "".join(f"{h:>12}" for h in head))
    for row in rows:
        cells = (
            median(row.rate, 0), median(row.cpu_us, 0), median(row.p50_ms, 2),
            median(row.p99_ms, 2), median(row.busy, 2),
        )  # fmt: skip
        print(f"{row.what:32}{row.workers:>8}" + "".join(f"{c:>12}" for c in cells))
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        ratios = [b / a for a, b in zip(one.rate, two.rate, strict=True)]
        print(
            f"{one.what}: {two.workers} workers {statistics.median(ratios):.2f} times the rate of one "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
        )
    print("resident, MB: " + ", ".join(f"{n} workers {mb:.0f}" for n, mb in memory.items()))


if __name__ == "__main__":
    main()
