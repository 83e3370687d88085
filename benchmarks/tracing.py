"""What tracing costs: CPU and rate of `edgeserve run` for a tiny JSON request, with `--trace` off and on.

    python benchmarks/tracing.py

Four servers run side by side: tracing off; on; on, for clients that decide not to be sampled (`traceparent` ends in 00); and on
with one in ten traces kept. They are asked in turn, each for a while, round after round; the figures are medians over the rounds,
and ratios to `off` of the same round. CPU is the server process's own (user and system), divided by requests; it has the export
to a collector on loopback, a process of its own that reads and forgets.
"""

from __future__ import annotations

import argparse
import http.server
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.serving_overhead import load
from tests.bundles import linear_bundle

SAMPLED = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
KINDS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "off": ([], {}, SAMPLED),
    "on": (["--trace", "otlp"], {}, SAMPLED),
    "on, not sampled": (["--trace", "otlp"], {}, SAMPLED.replace("-01\r", "-00\r")),
    "on, one in ten": (
        ["--trace", "otlp"],
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
        "",
    ),
}


class Collector(http.server.BaseHTTPRequestHandler):
    """Reads what is exported."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def collect(ports: Any) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        ports.put(server.server_port)
        server.serve_forever()


def started(bundle: Path, kind: str, collector: int) -> tuple[subprocess.Popen[str], str]:
    flags, variables, _ = KINDS[kind]
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "edgeserve", "run", str(bundle), "--http-port", "0", *flags],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | endpoint | variables,
    )  # fmt: skip
    assert server.stderr is not None
    url = next(m[0] for line in server.stderr if (m := re.search(r"http://[\d.]+:\d+", line)))
    return server, url


def measured(
    server: subprocess.Popen[str], url: str, kind: str, arguments: Any
) -> tuple[float, float, int]:
    """CPU microseconds a request, requests a second, wrong answers."""
    process, spawn = psutil.Process(server.pid), multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    asked = (url, "linear", arguments.connections, arguments.seconds, answers, KINDS[kind][2])
    before = process.cpu_times()
    client = spawn.Process(target=load, args=asked)
    client.start()
    requests, wrong = answers.get()
    client.join()
    after = process.cpu_times()
    cpu = (after.user + after.system) - (before.user + before.system)
    return 1e6 * cpu / requests, requests / arguments.seconds, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.Queue()
    collector = spawn.Process(target=collect, args=(ports,), daemon=True)
    collector.start()
    port = ports.get()
    found: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        bundle = linear_bundle(Path(folder))
        servers = {kind: started(bundle, kind, port) for kind in KINDS}
        try:
            for number in range(arguments.rounds + 1):  # the first one warms up
                for kind, server in servers.items():
                    one = measured(*server, kind, arguments)
                    if number:
                        found[kind].append(one)
                time.sleep(0.1)
        finally:
            for server, _ in servers.values():
                server.terminate()
                server.wait()
    collector.terminate()
    print(f"{'--trace':18}{'CPU us':>8}{'x off':>7}{'req/s':>9}{'x off':>7}{'wrong':>7}")
    rows = {}
    for kind, rounds in found.items():
        cpu, rate = (statistics.median(one[i] for one in rounds) for i in (0, 1))
        ratios = [
            statistics.median(
                one[i] / off[i] for one, off in zip(rounds, found["off"], strict=True)
            )
            for i in (0, 1)
        ]
        wrong = sum(one[2] for one in rounds)
        rows[kind] = {"cpu_us": cpu, "rate": rate, "cpu_ratio": ratios[0], "rate_ratio": ratios[1]}
        print(f"{kind:18}{cpu:8.0f}{ratios[0]:7.2f}{rate:9.0f}{ratios[1]:7.2f}{wrong:7}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
