"""This checkout's server beside another checkout's, in turns: what a change costs, or gains.

    git worktree add ../before HEAD~1
    python benchmarks/commits.py ../before

Both run in this interpreter's environment, on one core, with one engine thread; the load generator has
another core. CPU is that of the server's process tree divided by requests. Printed are medians over rounds,
and the median of the rounds' ratios (this checkout / the other): on a shared machine only those mean much.

Four kinds of request: four numbers as JSON, the same over gRPC, an image of 602 KB as binary, and a
row of 64 numbers for a network of matrix products, for which batches pay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.load import Question, closed_loop, grpc_loop
from benchmarks.servers import (
    Server,
    ask_edgeserve,
    ask_grpc,
    inputs,
    post,
    started,
    v2_document,
    v2_numbers,
)
from benchmarks.serving_overhead import image_bundle
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear_bundle, write_bundle

CASES = (
    ("tiny", 1), ("tiny", 8), ("image", 8), ("grpc", 1), ("grpc", 8), ("layers", 8), ("layers", 64),
)  # fmt: skip
WIDTH = 1024


@dataclass
class Turn:
    """One measurement of one server."""

    cpu_us: float
    rate: float
    p99_ms: float
    ready_ms: float
    memory_mb: float
    wrong: int


# the network that gains from batches


def weights() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    shapes = ((64, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 10))
    return [(random.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for s in shapes]


def layers(x: np.ndarray) -> np.ndarray:
    """What `layers_bundle` computes, x FP32[n,64] -> FP32[n,10]."""
    *hidden, last = weights()
    for weight in hidden:
        x = np.maximum(x @ weight, 0)
    return x @ last


def layers_bundle(folder: Path) -> Path:
    names = [f"w{i}" for i in range(4)]
    nodes, last = [], "x"
    for index, name in enumerate(names):
        made = "y" if index == 3 else f"z{index}"
        nodes.append(helper.make_node("MatMul", [last, name], [made]))
        last = made
        if index < 3:
            nodes.append(helper.make_node("Relu", [made], [f"a{index}"]))
            last = f"a{index}"
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w, n) for n, w in zip(names, weights(), strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 64)),), (TensorSpec("y", "FP32", ("batch", 10)),), 32
    )
    x = rows()[0]
    return write_bundle(folder, "layers", model, interface, {"x": x}, {"y": layers(x)})


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    return [random.normal(size=(1, 64)).astype(np.float32) for _ in range(16)]


# asking


def questions(kind: str) -> list[Question]:
    if kind == "grpc":
        return [ask_grpc(x) for x in inputs(kind)]
    if kind != "layers":
        return [ask_edgeserve(kind, x) for x in inputs(kind)]
    return [
        Question(
            post("/v2/models/layers/infer", json.dumps({"inputs": [v2_document(x)]}).encode()),
            layers(x).ravel(),
            v2_numbers,
            tolerance=1e-4,
        )
        for x in rows()
    ]


def server(name: str, checkout: Path, bundles: dict[str, Path]) -> Server:
    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        ports = ["--http-port", str(port)]
        if kind == "grpc":
            ports += ["--grpc-port", str(grpc_port)]
        program = [sys.executable, "-m", "edgeserve", "run", str(bundles[kind])]
        return [*program, "--threads", "1", *ports]

    path = f"{checkout}{os.pathsep}{checkout / 'converters'}"
    variables = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    return Server(name, command, ask_edgeserve, lambda kind: "/v2/health/ready", variables)


def turn(
    one: Server, kind: str, connections: int, asked: Sequence[Question], seconds: float,
    core: int, folder: Path,
) -> Turn:  # fmt: skip
    with started(one, kind, folder, {core}, folder / "servers.log") as running:
        port = running.grpc_port if kind == "grpc" else running.port
        ask = grpc_loop if kind == "grpc" else closed_loop
        ask(port, asked, connections, 0.4)  # warm
        cpu = running.threads_cpu_s()
        load = ask(port, asked, connections, seconds)
        spent = running.threads_cpu_s() - cpu
        return Turn(
            1e6 * spent / max(1, load.requests), load.rate, load.percentile_ms(0.99),
            running.start.ready_ms, running.start.memory_mb, load.wrong,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="these kinds of request")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="server, generator")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.cores[1]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = {
            "tiny": linear_bundle(folder),
            "image": image_bundle(folder),
            "layers": layers_bundle(folder),
        }
        bundles["grpc"] = bundles["tiny"]
        servers = [
            server("other", arguments.other.resolve(), bundles),
            server("this", ROOT, bundles),
        ]
        print(
            f"{'request':8}{'conn.':>6}{'CPU us':>9}{'before':>9}{'ratio':>7}{'req/s':>10}{'before':>10}"
            f"{'ratio':>7}{'p99':>8}{'before':>8}{'ready':>7}{'before':>8}{'MB':>5}{'before':>8}{'wrong':>7}"
        )
        for kind, connections in CASES:
            if arguments.only and kind not in arguments.only:
                continue
            asked = questions(kind)
            pairs = []
            for number in range(arguments.rounds):
                order = servers if number % 2 else servers[::-1]
                got = {
                    s.name: turn(
                        s, kind, connections, asked, arguments.seconds, arguments.cores[0], folder
                    )
                    for s in order
                }
                pairs.append((got["this"], got["other"]))
            show(kind, connections, pairs)


def show(kind: str, connections: int, pairs: Sequence[tuple[Turn, Turn]]) -> None:
    def both(of: str) -> tuple[float, float, float]:
        this, other = ([float(getattr(p[i], of)) for p in pairs] for i in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(this, other, strict=True))
        return statistics.median(this), statistics.median(other), ratio

    cpu, rate, p99, ready, memory = (
        both(of) for of in ("cpu_us", "rate", "p99_ms", "ready_ms", "memory_mb")
    )
    wrong = sum(t.wrong for pair in pairs for t in pair)
    print(
        f"{kind:8}{connections:6}{cpu[0]:9.1f}{cpu[1]:9.1f}{cpu[2]:7.3f}{rate[0]:10.0f}{rate[1]:10.0f}"
        f"{rate[2]:7.3f}{p99[0]:8.2f}{p99[1]:8.2f}{ready[0]:7.0f}{ready[1]:8.0f}"
        f"{memory[0]:5.0f}{memory[1]:8.0f}{wrong:7}",
        flush=True,
    )


if __name__ == "__main__":
    main()
