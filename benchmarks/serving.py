"""The server beside FastAPI with pydantic, MLServer, LitServe and BentoML: the same models, one run.

    python benchmarks/serving.py --json serving.json
    python benchmarks/serving.py --efficientnet efficientnet_lite0.edge --only edgeserve

Every server runs in a virtual environment of its own (made on first use in the user's cache), on one
core, with one engine thread; the load generator has another core. Rounds: each server is started,
measured, ended, and after the last one the first comes again, so that a busy neighbour on a shared machine
spoils all alike. CPU is that of the server's whole process tree, user and system, divided by requests: it
does not depend on how fast the generator is. All answers are compared (load.py).

Three kinds of request: four numbers as JSON, the same over gRPC where a server speaks it, and an image of
224x224 (602 KB) as binary, for a model that only takes its mean: what is measured is serving. Binary tensors: ours as the protocol's binary data, FastAPI's as the
raw body, LitServe's and BentoML's as base64 in JSON, as their guides do; MLServer takes JSON alone.

With --efficientnet: CPU of a served image against the bare engine's, in turns, with the same images and
one thread each, from 2 and from 8 connections; the answer's 1000 numbers in binary, as the image, or as
JSON; from 8 connections also with batches of 4, for which the server compiles the model once more. And an
open loop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.load import Load, closed_loop, grpc_loop
from benchmarks.servers import (
    MAKERS,
    REQUIREMENTS,
    Server,
    Start,
    ask_grpc,
    edgeserve,
    inputs,
    started,
)
from benchmarks.serving_efficientnet import efficientnet, show_efficientnet
from benchmarks.serving_overhead import image_bundle
from tests.bundles import linear_bundle, linear_model

CONNECTIONS = (1, 8, 64)
KINDS = ("tiny", "image", "grpc")
SPEAK_GRPC = ("edgeserve", "mlserver")


@dataclass
class Row:
    """One server, one kind of request, one number of connections, all rounds."""

    server: str
    kind: str
    connections: int
    load: Load = field(default_factory=Load)
    cpu_s: float = 0.0
    rates: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | int | str]:
        return {
            "server": self.server,
            "kind": self.kind,
            "connections": self.connections,
            "requests": self.load.requests,
            "wrong": self.load.wrong,
            "cpu_us": 1e6 * self.cpu_s / max(1, self.load.requests),
            "rate": statistics.median(self.rates),
            "p50_ms": self.load.percentile_ms(0.50),
            "p99_ms": self.load.percentile_ms(0.99),
            "generator_busy": self.load.busy,
        }


# what is measured


def side_by_side(
    servers: Sequence[Server], models: Path, arguments: argparse.Namespace, log: Path
) -> tuple[list[Row], list[Start]]:
    rows = {
        (s.name, k, c): Row(s.name, k, c)
        for k in KINDS
        for c in CONNECTIONS
        for s in servers
        if k != "grpc" or s.name in SPEAK_GRPC
    }
    starts: list[Start] = []
    questions = {
        (s.name, k): [ask_grpc(x) if k == "grpc" else s.question(k, x) for x in inputs(k)]
        for k in KINDS
        for s in servers
    }
    for number in range(arguments.rounds):
        for server in servers:
            print(f"round {number + 1}: {server.name}", file=sys.stderr)
            for kind in KINDS:
                if kind == "grpc" and server.name not in SPEAK_GRPC:
                    continue
                asked = questions[server.name, kind]
                with started(server, kind, models, {arguments.cores[0]}, log) as running:
                    starts.append(running.start)
                    port = running.grpc_port if kind == "grpc" else running.port
                    ask = grpc_loop if kind == "grpc" else closed_loop
                    ask(port, asked, 8, 0.5)  # warm
                    for connections in CONNECTIONS:
                        row = rows[server.name, kind, connections]
                        cpu = running.cpu_s()
                        load = ask(port, asked, connections, arguments.seconds)
                        row.cpu_s += running.cpu_s() - cpu
                        row.rates.append(load.rate)
                        row.load.add(load)
    return list(rows.values()), starts


# what is printed


def show(rows: Sequence[Row], starts: Sequence[Start]) -> None:
    names = list(dict.fromkeys(r.server for r in rows))
    print(
        f"\n{'request':8}{'conn.':>6} {'server':12}{'CPU us':>9}{'times':>7}{'req/s':>9}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'answers':>9}{'wrong':>7}{'gen. busy':>11}"
    )
    for kind in KINDS:
        for connections in CONNECTIONS:
            group = [r.summary() for r in rows if (r.kind, r.connections) == (kind, connections)]
            ours = next((r["cpu_us"] for r in group if r["server"] == "edgeserve"), None)
            for r in group:
                times = f"{r['cpu_us'] / ours:7.1f}" if ours else " " * 7
                print(
                    f"{kind:8}{connections:6} {r['server']:12}{r['cpu_us']:9.0f}{times}"
                    f"{r['rate']:9.0f}{r['p50_ms']:9.2f}{r['p99_ms']:9.2f}{r['requests']:9}"
                    f"{r['wrong']:7}{r['generator_busy']:10.0%}"
                )
    print(f"\n{'request':8} {'server':12}{'ready ms':>10}{'memory MB':>11}")
    for kind in KINDS:
        for name in names:
            own = [s for s in starts if (s.server, s.kind) == (name, kind)]
            if own:
                ready = statistics.median(s.ready_ms for s in own)
                memory = statistics.median(s.memory_mb for s in own)
                print(f"{kind:8} {name:12}{ready:10.0f}{memory:11.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these servers; none: only --efficientnet")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="server, generator")
    parser.add_argument("--efficientnet", type=Path, help="a bundle of EfficientNet-Lite0")
    parser.add_argument("--rate", type=float, default=500.0, help="of the open loop")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.cores[1]})
    names = ["edgeserve", *REQUIREMENTS] if arguments.only is None else arguments.only
    document: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(arguments).items()}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = {"tiny": linear_bundle(folder), "image": image_bundle(folder)}
        bundles["grpc"] = bundles["tiny"]
        onnx.save(linear_model(), folder / "linear.onnx")
        shutil.copy(bundles["image"] / "onnx-fp32" / "model.onnx", folder / "image.onnx")
        servers = [edgeserve(bundles)] if "edgeserve" in names else []
        servers += [make(folder) for peer, make in MAKERS.items() if peer in names]
        log = folder / "servers.log"
        if servers:
            rows, starts = side_by_side(servers, folder, arguments, log)
            show(rows, starts)
            document["rows"] = [r.summary() for r in rows]
            document["starts"] = [asdict(s) for s in starts]
        if arguments.efficientnet:
            result = efficientnet(arguments.efficientnet.resolve(), arguments, log)
            show_efficientnet(result)
            document["efficientnet"] = asdict(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
