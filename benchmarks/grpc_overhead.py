"""What gRPC costs: CPU and rate of ModelInfer for a tiny model and for 602 KB of tensor.

    python benchmarks/grpc_overhead.py [-o grpc.json]

A server process of its own is asked by client threads in another process, each on a connection of its
own. CPU is the server process's own (user and system), divided by calls; every answer is compared with
the number it should hold. Beside edgeserve stand two servers that do nothing but send a constant back,
on grpcio's two APIs: what they take is grpcio's own cost. All three run for the whole time and are asked
in turns, so that what else the machine does falls on each alike; the medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.serving_overhead import image_bundle
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear, linear_bundle

ROUNDS = 7
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]
CALLS = {"linear": {1: 600, 8: 1600}, "image": {1: 100, 8: 200}}


@dataclass
class Question:
    """A call as it goes over the wire, and the numbers that must come back."""

    model: str
    data: bytes
    expected: np.ndarray


@dataclass
class Row:
    """One line of the result: microseconds of CPU a call, and calls a second, of each round."""

    server: str
    model: str
    connections: int
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


def questions() -> dict[str, Question]:
    small = np.float32([[1, 2, 3, 4]])
    large = np.random.default_rng(1).random((1, 3, 224, 224), np.float32)
    found = {}
    for model, x, y in (("linear", small, linear(small)), ("image", large, large.mean((2, 3)))):
        message = messages.ModelInferRequest(model_name=model, id="1")
        message.inputs.add(name="x", datatype="FP32", shape=x.shape)
        message.raw_input_contents.append(x.tobytes())
        found[model] = Question(model, message.SerializeToString(), y)
    return found


def ask(
    address: str, question: Question, connections: int, calls: int, go: Any, result: Any
) -> None:
    """In a process of its own: closed-loop clients, which say that they are connected, start at `go`,
    and put (seconds, wrong answers) into `result`."""
    wrong = [0] * connections
    channels = [grpc.insecure_channel(address, OPTIONS) for _ in range(connections)]

    def one(index: int, count: int) -> None:
        infer = channels[index].unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(count):
            answer = messages.ModelInferResponse.FromString(infer(question.data))
            got = np.frombuffer(answer.raw_output_contents[0], np.float32)
            wrong[index] += not np.allclose(got, question.expected.ravel(), rtol=1e-3, atol=1e-5)

    for index in range(connections):
        one(index, 2)  # connected, and the model warm
    threads = [
        threading.Thread(target=one, args=(i, calls // connections)) for i in range(connections)
    ]
    result.put(None)
    go.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.put((time.perf_counter() - began, sum(wrong)))


def constant(kind: str, answer: bytes, ready: Any) -> None:
    """In a process of its own: a server that sends `answer` back, and nothing else."""

    def add(server: Any, behaviour: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(behaviour)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),)
        )

    if kind == "sync":
        server = grpc.server(ThreadPoolExecutor(64), options=OPTIONS)
        add(server, lambda request, context: answer)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        ready.put(port)
        server.wait_for_termination()
        return

    async def serve() -> None:
        async def behaviour(request: bytes, context: Any) -> bytes:
            return answer

        server = grpc.aio.server(options=OPTIONS)
        add(server, behaviour)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.put(port)
        await server.wait_for_termination()

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def start_edgeserve(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "edgeserve", "run", str(bundle), "--http-port", "0"]
    process = subprocess.Popen([*command, "--grpc-port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("gRPC: "):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, line.split()[1]
    raise SystemExit("the server did not start")


def measure(
    context: Any, pid: int, address: str, question: Question, connections: int, calls: int
) -> tuple[float, float]:
    """Microseconds of the server's CPU a call, and calls a second."""
    process, go, result = psutil.Process(pid), context.Event(), context.Queue()
    client = context.Process(target=ask, args=(address, question, connections, calls, go, result))
    client.start()
    result.get()
    before = process.cpu_times()
    go.set()
    seconds, wrong = result.get()
    client.join()
    after = process.cpu_times()
    if wrong:
        raise SystemExit(f"{wrong} answers were wrong")
    used = after.user + after.system - before.user - before.system
    return used / calls * 1e6, calls / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {"linear": linear_bundle(Path(scratch)), "image": image_bundle(Path(scratch))}
        for model, question in questions().items():
            rows += compare(context, bundles[model], question, arguments.rounds)
    print(f"{'server':<24}{'model':<9}{'connections':>12}{'CPU us/call':>13}{'calls/s':>10}")
    for row in rows:
        print(
            f"{row.server:<24}{row.model:<9}{row.connections:>12}"
            f"{statistics.median(row.cpu_us):>13.0f}{statistics.median(row.rate):>10.0f}"
        )
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def compare(context: Any, bundle: Path, question: Question, rounds: int) -> list[Row]:
    """edgeserve and the two constant servers on one model, in turns."""
    process, address = start_edgeserve(bundle)
    with grpc.insecure_channel(address, OPTIONS) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(question.data)
    servers = {"edgeserve": (process.pid, address)}
    constants = []
    for kind in ("sync", "aio"):
        ready = context.Queue()
        server = context.Process(target=constant, args=(kind, answer, ready), daemon=True)
        server.start()
        constants.append(server)
        servers[f"grpcio {kind}, constant"] = (server.pid, f"127.0.0.1:{ready.get()}")
    rows = [
        Row(name, question.model, connections)
        for connections in CALLS[question.model]
        for name in servers
    ]
    for _ in range(rounds):
        for row in rows:
            calls = CALLS[question.model][row.connections]
            cpu, rate = measure(context, *servers[row.server], question, row.connections, calls)
            row.cpu_us.append(cpu)
            row.rate.append(rate)
    process.terminate()
    process.wait()
    for server in constants:
        server.terminate()
        server.join()
    return rows


if __name__ == "__main__":
    main()
