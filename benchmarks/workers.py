"""What `edgeserve run --workers 2` gains over one process: a tiny model, asked as JSON over HTTP and over gRPC.

    python benchmarks/workers.py [--quiet CORES] [-o workers.json]

Both servers run for the whole time and are asked in turns by a client in a process of its own, which is
kept on the last core; the servers may use all of them. So where there are two cores, the second worker has
what the client leaves of its core. CPU is that of all the server's processes, the one that supervises
included, divided by requests; every answer is compared. The medians of the rounds are printed, the
ratio of the rates within each round, and how many cores other processes took meanwhile: where they take
cores, two processes get a larger share than one. With --quiet rounds in which they took more are left out.
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
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.grpc_overhead import ask, questions
from benchmarks.load import Question, closed_loop
from tests.bundles import linear, linear_bundle

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
    others: list[float] = field(default_factory=list)

    def drop_last(self) -> None:
        for values in vars(self).values():
            if isinstance(values, list) and values:
                values.pop()


def cpu_s(pid: int) -> float:
    """User and system time of a process and its children."""
    one = psutil.Process(pid)
    times = [p.cpu_times() for p in (one, *one.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def machine_s() -> float:
    """Time that the machine's cores were busy."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


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


def http_questions() -> list[Question]:
    """Sixteen that differ."""
    found = []
    for x in np.random.default_rng(0).normal(size=(16, 1, 4)).astype(np.float32):
        entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [entry]}).encode()
        head = f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\n\r\n"
        expected = np.ravel(linear(x))
        found.append(
            Question(head.encode() + body, expected, lambda answer: answer["outputs"][0]["data"])
        )
    return found


def http_client(port: int, pid: int, connections: int, seconds: float, result: Any) -> None:
    """In a process of its own, on the last core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    questions = http_questions()
    closed_loop(port, questions, connections, 0.3)  # warm
    before, own, busy = cpu_s(pid), time.process_time(), machine_s()
    load = closed_loop(port, questions, connections, seconds)
    used, own, busy = cpu_s(pid) - before, time.process_time() - own, machine_s() - busy
    result.put((load, used, max(0.0, busy - used - own) / load.elapsed_s))


def over_http(context: Any, server: Server, row: Row, connections: int, seconds: float) -> None:
    queue = context.Queue()
    client = context.Process(
        target=http_client, args=(server.http, server.process.pid, connections, seconds, queue)
    )
    client.start()
    load, used, others = queue.get()
    client.join()
    if load.wrong:
        raise SystemExit(f"{load.wrong} answers were wrong")
    row.rate.append(load.rate)
    row.cpu_us.append(1e6 * used / load.requests)
    row.p50_ms.append(load.percentile_ms(0.5))
    row.p99_ms.append(load.percentile_ms(0.99))
    row.busy.append(load.busy)
    row.others.append(others)


def over_grpc(context: Any, server: Server, row: Row, connections: int) -> None:
    go, queue = context.Event(), context.Queue()
    client = context.Process(
        target=ask, args=(server.grpc, questions()["linear"], connections, CALLS, go, queue)
    )
    client.start()
    os.sched_setaffinity(client.pid, {max(os.sched_getaffinity(0))})
    queue.get()
    before, busy = cpu_s(server.process.pid), machine_s()
    one = psutil.Process(client.pid)
    started = sum(one.cpu_times()[:2])
    go.set()
    seconds, wrong = queue.get()
    used = cpu_s(server.process.pid) - before
    own = used + sum(one.cpu_times()[:2]) - started
    row.others.append(max(0.0, machine_s() - busy - own) / seconds)
    client.join()
    if wrong:
        raise SystemExit(f"{wrong} answers were wrong")
    row.rate.append(CALLS / seconds)
    row.cpu_us.append(1e6 * used / CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quiet", type=float, help="leave out rounds in which others took more")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = linear_bundle(Path(scratch))
        servers = [start(bundle, workers) for workers in WORKERS]
        for connections in CONNECTIONS:
            these = [Row(f"HTTP, JSON, {connections} connections", w) for w in WORKERS]
            rows += these
            for _ in rounds(these, arguments.rounds, arguments.quiet):
                for server, row in zip(servers, these, strict=True):
                    over_http(context, server, row, connections, arguments.seconds)
        these = [Row("gRPC, 8 connections", w) for w in WORKERS]
        rows += these
        for _ in rounds(these, arguments.rounds, arguments.quiet):
            for server, row in zip(servers, these, strict=True):
                over_grpc(context, server, row, 8)
        memory = {server.workers: server.resident_mb() for server in servers}
        for server in servers:
            server.process.terminate()
            server.process.wait()
    show(rows, memory)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def rounds(rows: list[Row], wanted: int, quiet: float | None) -> Iterator[None]:
    """So many rounds that count, of at most ten times as many."""
    for _ in range(10 * wanted):
        if len(rows[0].rate) == wanted:
            return
        yield
        if quiet is not None and max(row.others[-1] for row in rows) > quiet:
            for row in rows:
                row.drop_last()


def show(rows: list[Row], memory: dict[int, float]) -> None:
    def median(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):,.{digits}f}" if values else ""

    print(f"{len(os.sched_getaffinity(0))} cores, the client on the last one")
    head = ("requests/s", "CPU us", "p50 ms", "p99 ms", "client busy", "others")
    print(f"{'':32}{'workers':>8}" + "".join(f"{h:>12}" for h in head))
    for row in rows:
        cells = (
            median(row.rate, 0), median(row.cpu_us, 0), median(row.p50_ms, 2),
            median(row.p99_ms, 2), median(row.busy, 2), median(row.others, 2),
        )  # fmt: skip
        print(f"{row.what:32}{row.workers:>8}" + "".join(f"{c:>12}" for c in cells))
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        ratios = [b / a for a, b in zip(one.rate, two.rate, strict=True)]
        if not ratios:
            print(f"{one.what}: no round was quiet")
            continue
        print(
            f"{one.what}: {two.workers} workers {statistics.median(ratios):.2f} times the rate of one "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
        )
    print("resident, MB: " + ", ".join(f"{n} workers {mb:.0f}" for n, mb in memory.items()))


if __name__ == "__main__":
    main()
