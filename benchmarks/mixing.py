"""Whether anybody's answer depends on who else asks: eight clients whose requests are hostile to each other.

    python benchmarks/mixing.py [--quick] [--no-litert] [-o mixing.json]

Small models of the kinds that tempt a server to mix requests are made and converted: a classifier, a detector
(as many rows come out as pass a threshold), a regressor, two outputs of different scale, text with
masks, and the classifier in dynamic int8 on onnxruntime and on LiteRT. Each is served by one process and
by two workers. First every request is asked alone; then eight clients send them at once over HTTP and over
gRPC, large, tiny, zero, negative and ordinary ones of one to three rows, while the server waits a moment for
batches to fill. An answer differs when it has another shape, or is off by more than the golden tolerance
of the variant that gave it. Exit code 1 when any does.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve import convert
from edgeserve.bundle import Bundle
from edgeserve.chain import relative_rms_error
from edgeserve.client import Question, connect
from edgeserve.tensors import Tensors

CLIENTS = 8
QUESTIONS = 24
WIDTH, LAYERS, INPUTS, TOKENS, WORDS = 512, 10, 8, 6, 50
FACTORS = (1.0, 1.0, 1e3, -1e3, 1e-6, 0.0, -1.0, 1e6)
# As the server is run: one call at a time, and batches that have time to fill.
FLAGS = ("--instances", "1", "--threads", "1", "--batch-delay", "0.004")


@dataclass
class Subject:
    """A model, the flags that convert and serve it, and what makes its requests."""

    name: str
    model: str
    options: dict[str, Any]
    variant: str | None = None
    tool: bool = False  # whether a tool environment is needed


@dataclass
class Row:
    """One line of the result; `batch_rows` is the mean over the batches that ran."""

    what: str
    candidate: str
    workers: int
    protocol: str
    answers: int
    differ: int
    worst: float
    tolerance: float
    batch_rows: float
    batching: str


# models


class Sketch:
    """A graph under construction, with a trunk that takes longer than a thread hop."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *given: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(given), [name], name=name, **attributes))
        return name

    def constant(self, values: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def product(self, x: str, rows: int, columns: int) -> str:
        weight = self.random.normal(size=(rows, columns)) / np.sqrt(rows)
        return self.op("MatMul", x, self.constant(weight.astype(np.float32)))

    def trunk(self, x: str, inputs: int) -> str:
        x = self.product(x, inputs, WIDTH)
        for _ in range(LAYERS):
            x = self.op("Relu", self.product(x, WIDTH, WIDTH))
        return x

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
        """`outputs` maps tensors to the shapes they are given out with."""
        kinds = {"x": TensorProto.FLOAT}
        graph = helper.make_graph(
            self.nodes,
            "mixing",
            [
                helper.make_tensor_value_info(n, kinds.get(n, TensorProto.INT64), s)
                for n, s in inputs.items()
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def classifier() -> onnx.ModelProto:
    net = Sketch()
    scores = net.op("Softmax", net.product(net.trunk("x", INPUTS), WIDTH, 10), axis=-1)
    return net.model({"x": ["batch", INPUTS]}, {scores: ["batch", 10]})


def logits() -> onnx.ModelProto:
    net = Sketch()
    return net.model(
        {"x": ["batch", INPUTS]},
        {net.product(net.trunk("x", INPUTS), WIDTH, 10): ["batch", 10]},
    )


def regressor() -> onnx.ModelProto:
    net = Sketch()
    age = net.product(net.trunk("x", INPUTS), WIDTH, 1)
    return net.model({"x": ["batch", INPUTS]}, {age: ["batch", 1]})


def detector() -> onnx.ModelProto:
    """Rows whose first number is positive come out."""
    net = Sketch()
    boxes = net.product(net.trunk("x", INPUTS), WIDTH, 4)
    first = net.op("Gather", "x", net.constant(np.int64(0)), axis=1)
    found = net.op("Greater", first, net.constant(np.float32(0)))
    return net.model(
        {"x": ["batch", INPUTS]}, {net.op("Compress", boxes, found, axis=0): ["found", 4]}
    )


def two_scales() -> onnx.ModelProto:
    """Coordinates of hundreds beside scores below one."""
    net = Sketch()
    x = net.trunk("x", INPUTS)
    boxes = net.op("Mul", net.product(x, WIDTH, 4), net.constant(np.float32(300)))
    scores = net.op("Sigmoid", net.product(x, WIDTH, 2))
    return net.model({"x": ["batch", INPUTS]}, {boxes: ["batch", 4], scores: ["batch", 2]})


def text() -> onnx.ModelProto:
    """The mean over those tokens that are not padding."""
    net = Sketch()
    table = net.constant(net.random.normal(size=(WORDS, 32)).astype(np.float32))
    words = net.trunk(net.op("Gather", table, "input_ids"), 32)
    mask = net.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    wide = net.op("Unsqueeze", mask, net.constant(np.int64([2])))
    total = net.op("ReduceSum", net.op("Mul", words, wide), net.constant(np.int64([1])), keepdims=0)
    count = net.op("ReduceSum", mask, net.constant(np.int64([1])), keepdims=1)
    vector = net.product(net.op("Div", total, count), WIDTH, 16)
    shape = ["batch", "tokens"]
    return net.model({"input_ids": shape, "attention_mask": shape}, {vector: ["batch", 16]})


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": classifier,
    "detector": detector,
    "logits": logits,
    "regressor": regressor,
    "text": text,
    "two scales": two_scales,
}
FP32 = {"precision": "fp32"}
DYNAMIC = {"precision": "int8", "recipes": ("dynamic",)}
SUBJECTS = [
    Subject("classifier", "classifier", FP32),
    Subject("detector, rows by the data", "detector", FP32),
    Subject("regressor", "regressor", FP32),
    Subject("two outputs of different scale", "two scales", FP32),
    Subject("text with masks", "text", FP32),
    Subject("dynamic int8, onnxruntime", "logits", DYNAMIC, "onnx-int8-dynamic"),
    Subject("dynamic int8, LiteRT", "logits", DYNAMIC, "tflite-int8-dynamic", tool=True),
]
QUICK = ("classifier", "detector, rows by the data", "dynamic int8, onnxruntime")


def request(model: str, random: np.random.Generator, index: int) -> Tensors:
    rows = 1 + index % 3
    if model == "text":
        lengths = random.integers(1, TOKENS + 1, rows)
        mask = (np.arange(TOKENS)[None] < lengths[:, None]).astype(np.int64)
        return {"input_ids": random.integers(0, WORDS, (rows, TOKENS)), "attention_mask": mask}
    x = FACTORS[index % len(FACTORS)] * random.normal(size=(rows, INPUTS))
    return {"x": x.astype(np.float32)}


def calibration(model: str, file: Path) -> Path:
    """Real samples, as far as there are any: of ordinary size, all of them objects for the detector."""
    random = np.random.default_rng(1)
    if model == "text":
        made = [request("text", random, 0) for _ in range(16)]
        np.savez(file, **{n: np.concatenate([m[n] for m in made]) for n in made[0]})
    else:
        np.savez(file, x=np.abs(random.normal(size=(32, INPUTS))).astype(np.float32))
    return file


# one server


@contextmanager
def served(bundle: Path, variant: str | None, workers: int) -> Iterator[tuple[str, str]]:
    """The addresses for HTTP and for gRPC of a running server."""
    flags = [*FLAGS, "--workers", str(workers), *(["--variant", variant] if variant else [])]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "edgeserve", "run", str(bundle), "--http-port", "0",
            "--grpc-port", "0", *flags,
        ],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    printed = ""
    try:
        for line in process.stderr:
            printed += line
            if line.startswith("try: "):
                break
        http = re.search(r"at (http://[^ ]+:\d+)", printed)
        grpc = re.search(r"gRPC: (\S+:\d+)", printed)
        if http is None or grpc is None:
            raise SystemExit(f"the server did not start:\n{printed}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield http[1], f"grpc://{grpc[1].removeprefix('grpc://')}"
    finally:
        process.terminate()
        process.wait(30)


def ask_all(
    url: str,
    name: str,
    questions: list[Question],
    alone: list[Tensors],
    tolerance: float,
    calls: int,
) -> tuple[int, int, float]:
    """The number of answers, of those that are off from `alone` by more than `tolerance`, and the largest error."""
    answers, differ, worst = 0, 0, 0.0
    lock = threading.Lock()
    failures: list[BaseException] = []

    def one_client(number: int) -> None:
        nonlocal answers, differ, worst
        random = np.random.default_rng(number)
        try:
            with connect(url) as client:
                for _ in range(calls):
                    index = int(random.integers(len(questions)))
                    got = client.infer(name, questions[index]).outputs
                    error = max(relative_rms_error(a, got[n]) for n, a in alone[index].items())
                    with lock:
                        answers += 1
                        worst = max(worst, error)
                        differ += error > tolerance
        except BaseException as error:  # told to the main thread
            failures.append(error)

    clients = [threading.Thread(target=one_client, args=(k,)) for k in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if failures:
        raise failures[0]
    return answers, differ, worst


def batch_rows(http: str) -> tuple[float, float]:
    """Rows and batches so far."""
    with urllib.request.urlopen(f"{http}/metrics") as answer:
        told = answer.read().decode()
    found = [
        re.search(rf"edgeserve_batch_rows_{what}{{[^}}]*}} (\S+)", told)
        for what in ("sum", "count")
    ]
    return float(found[0][1]) if found[0] else 0.0, float(found[1][1]) if found[1] else 0.0


def measure(subject: Subject, bundle: Path, workers: int, calls: int) -> list[Row]:
    manifest = Bundle.open(bundle).manifest
    random = np.random.default_rng(2)
    asked = [Question(request(subject.model, random, i)) for i in range(QUESTIONS)]
    rows = []
    with served(bundle, subject.variant, workers) as (http, grpc):
        with connect(http) as client:
            alone = [client.infer(manifest.name, q) for q in asked]
        with urllib.request.urlopen(f"{http}/v2/models/{manifest.name}/config") as answer:
            config = json.load(answer)
        said = config.get("parameters", {}).get("edgeserve_batching", {})
        batching = said.get("string_value", "not said")
        where = alone[0].where
        tolerance = manifest.variant(str(where.variant)).golden_tolerance
        for protocol, url in (("HTTP", http), ("gRPC", grpc)):
            before = batch_rows(http)
            told = ask_all(url, manifest.name, asked, [a.outputs for a in alone], tolerance, calls)
            after = batch_rows(http)
            mean = (after[0] - before[0]) / max(1.0, after[1] - before[1])
            label = f"{where.runtime}/{where.device}/{where.variant}"
            rows.append(
                Row(subject.name, label, workers, protocol, *told, tolerance, mean, batching)
            )
    return rows


def made(subject: Subject, folder: Path) -> Path | None:
    """Its bundle; None, with the reason printed, where its variant cannot be made here."""
    name = subject.model.replace(" ", "-")
    kind = str(subject.options["precision"])
    source, bundle = folder / f"{name}.onnx", folder / f"{name}-{kind}.edge"
    if not bundle.exists():
        onnx.save(MODELS[subject.model](), source)
        samples = calibration(subject.model, folder / f"{name}.npz")
        convert(source, bundle, calibrate=str(samples), max_drop=100.0, **subject.options)
    kept = [v.id for v in Bundle.open(bundle).manifest.variants]
    if subject.variant is not None and subject.variant not in kept:
        print(
            f"skipped: {subject.name}: {subject.variant} was not made here, only {', '.join(kept)}"
        )
        return None
    return bundle


def table(rows: list[Row]) -> str:
    lines = [
        "| model | on | workers | protocol | answers | differ | largest error | rows a batch | batching |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(line, rows)])


def line(row: Row) -> str:
    return (
        f"| {row.what} | {row.candidate} | {row.workers} | {row.protocol} | {row.answers} | {row.differ} "
        f"| {row.worst:.1e} of {row.tolerance:.1e} | {row.batch_rows:.1f} | {row.batching} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three models, one process, few requests"
    )
    parser.add_argument(
        "--no-litert", action="store_true", help="leave out what needs a tool environment"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    calls, processes = (60, (1,)) if arguments.quick else (250, (1, 2))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in SUBJECTS:
            if (arguments.quick and subject.name not in QUICK) or (
                arguments.no_litert and subject.tool
            ):
                continue
            bundle = made(subject, Path(folder))
            for workers in processes if bundle is not None else ():
                assert bundle is not None
                rows += measure(subject, bundle, workers, calls)
    print(table(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if any(row.differ for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
