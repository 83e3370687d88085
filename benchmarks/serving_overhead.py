"""What serving costs: CPU and rate of `edgeserve run` for a tiny model, start-up time, memory.

    python benchmarks/serving_overhead.py

A server process of its own is asked by client threads in another process over keep-alive connections.
CPU is the server process's own (user and system), divided by requests. Two kinds of body: JSON for a model
of four numbers, and 602 KB of binary tensor (an image of 224x224) for one that only takes a mean. The JSON
ones differ, and so do their lengths: heads that are equal byte for byte are seen in benchmarks alone.
The last line is what handing work to a thread and its result back to the event loop costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import queue as queues
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear_bundle, write_bundle

CONNECTIONS = 8


def image_bundle(folder: Path) -> Path:
    """x FP32[batch,3,224,224] -> its mean over pixels, FP32[batch,3]."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0, name="mean")],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 3, 224, 224)),),
        (TensorSpec("y", "FP32", ("batch", 3)),),
        max_batch=8,
    )
    x = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    return write_bundle(folder, "image", model, interface, {"x": x}, {"y": x.mean((2, 3))})


def requests(model: str, heads: str = "") -> list[bytes]:
    """`heads` are header lines that each has as well."""
    if model == "linear":
        random = np.random.default_rng(0)
        return [_json(random.normal(size=(1, 4)).astype(np.float32), heads) for _ in range(16)]
    data = np.ones((1, 3, 224, 224), np.float32).tobytes()
    entry = {
        "name": "x",
        "shape": [1, 3, 224, 224],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    return [_post(model, head + data, f"{heads}Inference-Header-Content-Length: {len(head)}\r\n")]


def _json(x: np.ndarray, heads: str) -> bytes:
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": x.ravel().tolist()}
    return _post("linear", json.dumps({"inputs": [entry]}).encode(), heads)


def _post(model: str, body: bytes, more: str) -> bytes:
    line = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: b\r\n{more}"
    return f"{line}Content-Length: {len(body)}\r\n\r\n".encode() + body


def load(
    url: str, model: str, connections: int, seconds: float, result: object, heads: str = ""
) -> None:
    """Closed-loop clients, a thread a connection; puts (requests, wrong answers) into `result`. An answer is
    wrong when it is not what the same request was answered with first."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    payloads, counts, wrong = requests(model, heads), [0] * connections, [0] * connections
    end = time.perf_counter() + seconds

    def one(index: int) -> None:
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first: dict[int, bytes] = {}
            while time.perf_counter() < end:
                number = (index + counts[index]) % len(payloads)
                connection.sendall(payloads[number])
                answer = connection.recv(65536)
                body = answer.partition(b"\r\n\r\n")[2]
                counts[index] += 1
                right = answer.startswith(b"HTTP/1.1 200") and body == first.setdefault(
                    number, body
                )
                wrong[index] += not right

    threads = [threading.Thread(target=one, args=(i,)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.put((sum(counts), sum(wrong)))  # type: ignore[attr-defined]


def measure(bundle: Path, model: str, connections: int, seconds: float) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "edgeserve", "run", str(bundle), "--http-port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    with server:
        assert server.stderr is not None
        url = next(m[0] for line in server.stderr if (m := re.search(r"http://[\d.]+:\d+", line)))
        ready_s = time.perf_counter() - began
        process = psutil.Process(server.pid)
        spawn = multiprocessing.get_context("spawn")
        queue = spawn.Queue()
        for duration in (1.0, seconds):  # the first one warms up
            before, start = process.cpu_times(), time.perf_counter()
            client = spawn.Process(target=load, args=(url, model, connections, duration, queue))
            client.start()
            requests, wrong = queue.get()
            client.join()
            elapsed, after = time.perf_counter() - start, process.cpu_times()
        cpu = (after.user + after.system) - (before.user + before.system)
        rss = process.memory_info().rss
        server.terminate()
    return {
        "requests": requests,
        "wrong": wrong,
        "rate": requests / min(elapsed, duration),
        "cpu_us": 1e6 * cpu / requests,
        "ready_ms": 1000 * ready_s,
        "rss_mb": rss / 1e6,
    }


def hop_us(rounds: int = 2_000) -> float:
    """Median time from the event loop to a waiting thread and back, in microseconds."""
    times: list[float] = []

    async def ask() -> None:
        loop, work = asyncio.get_running_loop(), queues.SimpleQueue()

        def worker() -> None:
            while (future := work.get()) is not None:
                loop.call_soon_threadsafe(future.set_result, None)

        thread = threading.Thread(target=worker)
        thread.start()
        for _ in range(rounds):
            future, began = loop.create_future(), time.perf_counter()
            work.put(future)
            await future
            times.append(time.perf_counter() - began)
        work.put(None)
        thread.join()

    asyncio.run(ask())
    return 1e6 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            "linear": linear_bundle(Path(folder)),
            "image": image_bundle(Path(folder)),
        }
        rows = {}
        for model, connections in (("linear", 1), ("linear", CONNECTIONS), ("image", CONNECTIONS)):
            kind = "tiny, JSON" if model == "linear" else "602 KB, binary"
            name = f"{kind}, {connections} connection{'s' * (connections > 1)}"
            rows[name] = measure(bundles[model], model, connections, arguments.seconds)
    print(f"{'':32}{'CPU us':>8}{'req/s':>9}{'wrong':>7}{'ready ms':>10}{'RSS MB':>8}")
    for name, row in rows.items():
        print(
            f"{name:32}{row['cpu_us']:8.0f}{row['rate']:9.0f}{row['wrong']:7.0f}"
            f"{row['ready_ms']:10.0f}{row['rss_mb']:8.0f}"
        )
    print(f"to a thread and back: {hop_us():.0f} us (median)")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
