"""What each protocol costs: CPU of the server for a request, beside v2's for the same payload, in one run.

    python benchmarks/protocols.py

One server speaks all protocols. Payloads: four numbers as JSON; an image of 224 x 224 as a tensor (602 KB) in JSON, and in the
protocol's binary form if it has one; a JPEG. Numbers come in nested lists, as all protocols take them (v2 takes flat ones, too,
which cost a third less). CPU is the server process's own, user and system, divided by requests, from 8
connections. Protocols take turns, several rounds; a ratio is that of one round, and the median is printed. Every answer is
compared with the numbers that it should hold.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.load import Question, closed_loop
from benchmarks.serving_overhead import image_bundle
from tests.bundles import linear, linear_bundle
from tests.seeing import colours_bundle

CONNECTIONS = 8
JSON = "Content-Type: application/json"
VERTEX = "/v1/endpoints/1/deployedModels/2:predict"


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: bench", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def predictions(document: Any) -> Any:
    return document["predictions"][0]


def bare(document: Any) -> Any:
    return document


def tensor_questions(name: str, x: np.ndarray, expected: np.ndarray) -> dict[str, Question]:
    """A row of numbers in each protocol's JSON."""
    row, path = x[0].tolist(), f"/v2/models/{name}/infer"
    v2 = {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}]}

    def asked(path: str, document: Any, numbers: Callable[[Any], Any]) -> Question:
        return Question(
            post(path, json.dumps(document).encode(), JSON), expected, numbers, tolerance=1e-4
        )

    return {
        "v2": asked(path, v2, lambda d: d["outputs"][0]["data"]),
        "tfserving": asked(f"/v1/models/{name}:predict", {"instances": [row]}, predictions),
        "torchserve": asked(f"/predictions/{name}", {"data": row}, bare),
        "sagemaker": asked("/invocations", {"instances": [row]}, predictions),
        "vertex": asked(VERTEX, {"instances": [row]}, predictions),
        "azureml": asked("/score", {"data": [row]}, lambda d: d[0]),
    }


def binary_questions(name: str, x: np.ndarray, expected: np.ndarray) -> dict[str, Question]:
    """The same as bytes, where there is a form for that."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": list(x.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ]
        }
    ).encode()
    file = io.BytesIO()
    np.save(file, x)
    npy = file.getvalue()
    binary = post(
        f"/v2/models/{name}/infer",
        head + x.tobytes(),
        f"Inference-Header-Content-Length: {len(head)}",
    )
    kind = "Content-Type: application/x-npy"
    return {
        "v2": Question(binary, expected, lambda d: d["outputs"][0]["data"], tolerance=1e-4),
        "torchserve": Question(
            post(f"/predictions/{name}", npy, kind), expected, bare, tolerance=1e-4
        ),
        "sagemaker": Question(
            post("/invocations", npy, kind), expected, lambda d: d[0], tolerance=1e-4
        ),
        "vertex": Question(post(VERTEX, npy, kind), expected, predictions, tolerance=1e-4),
        "azureml": Question(post("/score", npy, kind), expected, lambda d: d[0], tolerance=1e-4),
    }


def image_questions(photo: bytes) -> dict[str, Question]:
    """A JPEG, whose best class is 2."""
    kind = "Content-Type: image/jpeg"
    text = base64.b64encode(photo).decode()
    expected = np.array([2.0])

    def best(document: Any) -> list[int]:
        return [document["classes"][0]["index"]]

    def largest(document: Any) -> list[int]:
        return [int(np.argmax(document["predictions"][0]))]

    def first(document: Any) -> list[int]:
        return [("red", "green", "blue").index(next(iter(document)))]

    rows = json.dumps({"instances": [{"b64": text}]}).encode()
    return {
        "v2": Question(post("/v2/models/colours/predict", photo, kind), expected, best),
        "tfserving": Question(post("/v1/models/colours:predict", rows, JSON), expected, largest),
        "torchserve": Question(post("/predictions/colours", photo, kind), expected, first),
        "sagemaker": Question(post("/invocations", photo, kind), expected, best),
        "vertex": Question(post(VERTEX, photo, kind), expected, best),
        "azureml": Question(post("/score", photo, kind), expected, best),
    }


@contextlib.contextmanager
def serving(bundle: Path, protocols: str) -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    command = [sys.executable, "-m", "edgeserve", "run", str(bundle), "--http-port", str(port)]
    command += ["--protocols", protocols, "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def cpu_us(port: int, server: psutil.Process, question: Question, seconds: float) -> float:
    """Of one request, in microseconds."""
    before = server.cpu_times()
    load = closed_loop(port, [question], CONNECTIONS, seconds)
    after = server.cpu_times()
    if load.wrong or not load.requests:
        raise SystemExit(
            f"{load.wrong} of {load.requests} answers are wrong: {question.wire[:60]!r}"
        )
    spent = after.user + after.system - before.user - before.system
    return 1e6 * spent / load.requests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="a payload: tiny, tensor, binary or jpeg")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    small = random.normal(size=(1, 4)).astype(np.float32)
    large = random.random((1, 3, 224, 224), np.float32)
    mean = large.mean((2, 3), dtype=np.float64).ravel()
    file = io.BytesIO()
    noise = np.clip(random.normal((40, 60, 160), 40, (360, 480, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noise).resize((480, 360)).save(file, "JPEG", quality=85)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = {
            "tiny": linear_bundle(folder), "tensor": image_bundle(folder), "jpeg": colours_bundle(folder),
        }  # fmt: skip
        cases = [
            (
                "tiny",
                "four numbers as JSON",
                bundles["tiny"],
                tensor_questions("linear", small, linear(small).ravel()),
            ),
            (
                "tensor",
                "602 KB of numbers as JSON",
                bundles["tensor"],
                tensor_questions("image", large, mean),
            ),
            (
                "binary",
                "602 KB of numbers as bytes",
                bundles["tensor"],
                binary_questions("image", large, mean),
            ),
            (
                "jpeg",
                f"a JPEG of {len(file.getvalue()) // 1024} KB",
                bundles["jpeg"],
                image_questions(file.getvalue()),
            ),
        ]
        for key, title, bundle, questions in cases:
            if options.only in (None, key):
                show(title, measure(bundle, questions, options.rounds, options.seconds))


def measure(
    bundle: Path, questions: dict[str, Question], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """CPU of each round. TorchServe and SageMaker have some paths in common: each is served without the other."""
    found: dict[str, list[float]] = {name: [] for name in questions}
    with (
        serving(bundle, "tfserving,torchserve,vertex,azureml") as all_but_one,
        serving(bundle, "sagemaker") as last,
    ):
        for round_ in range(rounds + 1):
            for name, question in questions.items():
                port, server = last if name == "sagemaker" else all_but_one
                spent = cpu_us(port, server, question, seconds)
                if round_:  # the first one warms up
                    found[name].append(spent)
    return found


def show(title: str, found: dict[str, list[float]]) -> None:
    print(title)
    for name, spent in found.items():
        ratios = [own / v2 for own, v2 in zip(spent, found["v2"], strict=True)]
        print(
            f"  {name:11} {statistics.median(spent):8.0f} us   {statistics.median(ratios):5.2f} of v2",
            flush=True,
        )


if __name__ == "__main__":
    main()
