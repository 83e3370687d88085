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
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))

from benchmarks.load import Load, Question, closed_loop, grpc_loop, open_loop
from benchmarks.serving_overhead import image_bundle
from edgeserve.conversion.toolenv import cache_root
from tests.bundles import linear, linear_bundle, linear_model

CONNECTIONS = (1, 8, 64)
KINDS = ("tiny", "image", "grpc")
NAMES = {"tiny": "linear", "image": "image", "grpc": "linear"}
SPEAK_GRPC = ("edgeserve", "mlserver")
STARTING_S = 90.0
REQUIREMENTS = {
    "fastapi": (
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
        "uvloop",
        "httptools",
        "onnxruntime==1.32.0",
    ),
    "mlserver": ("mlserver==1.7.1", "onnxruntime==1.32.0"),
    "litserve": ("litserve==0.2.19", "onnxruntime==1.32.0"),
    "bentoml": ("bentoml==1.4.40", "onnxruntime==1.32.0"),
}


@dataclass
class Server:
    """How one server is started and asked. `command` gets ports for HTTP and gRPC and the kind of model."""

    name: str
    command: Callable[[int, int, str], Sequence[str]]
    question: Callable[[str, np.ndarray], Question]
    ready_path: Callable[[str], str]
    environment: dict[str, str] = field(default_factory=dict)


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


@dataclass
class Start:
    """How long a server took to answer, and the memory of its process tree then, MB."""

    server: str
    kind: str
    ready_ms: float
    memory_mb: float


# requests


def inputs(kind: str) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    if kind != "image":
        return [random.normal(size=(1, 4)).astype(np.float32) for _ in range(16)]
    return [random.random((1, 3, 224, 224), np.float32) for _ in range(4)]


def expected(x: np.ndarray) -> np.ndarray:
    return (linear(x) if x.ndim == 2 else x.mean((2, 3), dtype=np.float64)).ravel()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: bench", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


JSON = "Content-Type: application/json"


def v2_document(x: np.ndarray) -> dict[str, object]:
    return {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}


def v2_numbers(document: dict) -> list[float]:
    return document["outputs"][0]["data"]


def v2_binary(answer: bytes) -> np.ndarray:
    """The numbers behind the JSON of an answer with one output."""
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    return np.frombuffer(answer, np.float32, offset=end)


def ask_edgeserve(
    kind: str, x: np.ndarray, name: str | None = None, *, binary_answer: bool = False
) -> Question:
    path = f"/v2/models/{name or NAMES[kind]}/infer"
    if kind == "tiny":
        body = json.dumps({"inputs": [v2_document(x)]}).encode()
        return Question(post(path, body, JSON), expected(x), v2_numbers)
    entry = v2_document(x[:0]) | {
        "name": "x" if name is None else "image",
        "shape": list(x.shape),
        "parameters": {"binary_data_size": x.nbytes},
    }
    del entry["data"]
    document = {"inputs": [entry]}
    if binary_answer:  # tritonclient asks for that unless told otherwise
        document["parameters"] = {"binary_data_output": True}
    head = json.dumps(document).encode()
    wire = post(path, head + x.tobytes(), f"Inference-Header-Content-Length: {len(head)}")
    if binary_answer:
        return Question(wire, expected(x), v2_binary, parse=bytes)
    return Question(wire, expected(x), v2_numbers)


def ask_grpc(x: np.ndarray) -> Question:
    from edgeserve.serve.grpc import messages

    request = messages.ModelInferRequest(model_name="linear")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())

    def numbers(answer: bytes) -> np.ndarray:
        told = messages.ModelInferResponse.FromString(answer)
        if told.raw_output_contents:
            return np.frombuffer(told.raw_output_contents[0], np.float32)
        return np.array(told.outputs[0].contents.fp32_contents)

    return Question(request.SerializeToString(), expected(x), numbers)


def ask_fastapi(kind: str, x: np.ndarray) -> Question:
    if kind == "tiny":
        body = json.dumps({"inputs": [v2_document(x)]}).encode()
        return Question(post("/models/linear/infer", body, JSON), expected(x), v2_numbers)
    return Question(post("/models/image/raw", x.tobytes()), expected(x), v2_numbers)


def ask_mlserver(kind: str, x: np.ndarray) -> Question:
    body = json.dumps({"inputs": [v2_document(x)]}).encode()
    wire = post(f"/v2/models/{NAMES[kind]}/infer", body, JSON)
    return Question(wire, expected(x), v2_numbers, marker=b'"outputs"')


def _base64(x: np.ndarray) -> bytes:
    return json.dumps({"image": base64.b64encode(x.tobytes()).decode()}).encode()


def ask_litserve(kind: str, x: np.ndarray) -> Question:
    body = json.dumps({"x": x.tolist()}).encode() if kind == "tiny" else _base64(x)
    return Question(post(f"/{NAMES[kind]}", body, JSON), expected(x), lambda d: d["y"])


def ask_bentoml(kind: str, x: np.ndarray) -> Question:
    body = json.dumps({"x": x.tolist()}).encode() if kind == "tiny" else _base64(x)
    return Question(post(f"/{NAMES[kind]}", body, JSON), expected(x), lambda d: d)


# servers


def environment(name: str) -> Path:
    """The folder of programs of a peer's virtual environment; made on first use."""
    folder = cache_root() / "peers" / name
    done = folder / ".complete"
    if not done.is_file() or done.read_text() != repr(REQUIREMENTS[name]):
        print(f"making an environment for {name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
        done.write_text(repr(REQUIREMENTS[name]))
    return folder / "bin"


def edgeserve(bundles: dict[str, Path], *flags: str) -> Server:
    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        program = [sys.executable, "-m", "edgeserve", "run", str(bundles[kind]), "--threads", "1"]
        ports = ["--http-port", str(port)]
        if kind == "grpc":  # which costs memory where it is on
            ports += ["--grpc-port", str(grpc_port)]
        return [*program, *ports, *flags]

    return Server("edgeserve", command, ask_edgeserve, lambda kind: "/v2/health/ready")


def fastapi(folder: Path) -> Server:
    uvicorn = [str(environment("fastapi") / "python"), "-m", "uvicorn", "--app-dir", str(PEERS)]
    uvicorn += ["fastapi_app:app", "--loop", "uvloop", "--http", "httptools"]
    uvicorn += ["--no-access-log", "--log-level", "warning"]

    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        return [*uvicorn, "--port", str(port)]

    return Server("fastapi", command, ask_fastapi, lambda kind: "/ready")


def mlserver(folder: Path) -> Server:
    program = str(environment("mlserver") / "mlserver")

    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        return [program, "start", str(_mlserver(folder, port, grpc_port, kind))]

    return Server("mlserver", command, ask_mlserver, lambda kind: f"/v2/models/{NAMES[kind]}/ready")


def litserve(folder: Path) -> Server:
    python, app = str(environment("litserve") / "python"), str(PEERS / "litserve_app.py")

    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        return [python, app, str(port), NAMES[kind]]

    return Server("litserve", command, ask_litserve, lambda kind: "/health")


def bentoml(folder: Path) -> Server:
    program = [str(environment("bentoml") / "bentoml"), "serve", "bentoml_app:Onnx"]
    program += ["--working-dir", str(PEERS), "--host", "127.0.0.1"]

    def command(port: int, grpc_port: int, kind: str) -> list[str]:
        return [*program, "--port", str(port)]

    variables = {"BENTOML_DO_NOT_TRACK": "true"}
    return Server("bentoml", command, ask_bentoml, lambda kind: "/readyz", variables)


MAKERS = {"fastapi": fastapi, "mlserver": mlserver, "litserve": litserve, "bentoml": bentoml}


def _mlserver(folder: Path, port: int, grpc_port: int, kind: str) -> Path:
    """MLServer's folder: it takes ports and models from files. In-process, which is its quickest."""
    name = NAMES[kind]
    root = folder / f"mlserver-{port}"
    (root / name).mkdir(parents=True)
    shutil.copy(PEERS / "mlserver_model.py", root)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (root / "settings.json").write_text(json.dumps(settings))
    model = {"name": name, "implementation": "mlserver_model.Onnx"}
    (root / name / "model-settings.json").write_text(json.dumps(model))
    return root


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass
class Running:
    """A started server: its ports, process tree and start."""

    port: int
    grpc_port: int
    process: psutil.Process
    start: Start

    def cpu_s(self) -> float:
        return sum(t.user + t.system for p in self.tree() for t in [p.cpu_times()])

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started inside runs on these cores; we go back to ours."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def started(
    server: Server, kind: str, models: Path, cores: set[int], log: Path
) -> Iterator[Running]:
    port, grpc_port = free_port(), free_port()
    command = server.command(port, grpc_port, kind)
    variables = os.environ | server.environment | {"MODELS": str(models)}
    cwd = command[2] if server.name == "mlserver" else str(ROOT)
    began = time.perf_counter()
    with log.open("ab") as output, on_cores(cores):
        popen = subprocess.Popen(
            command, stdout=output, stderr=output, env=variables, cwd=cwd, start_new_session=True
        )
    try:
        while not answers(port, server.ready_path(kind)):
            if popen.poll() is not None or time.perf_counter() - began > STARTING_S:
                raise SystemExit(f"{server.name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.002)
        ready_ms = 1000 * (time.perf_counter() - began)
        running = Running(
            port, grpc_port, psutil.Process(popen.pid), Start(server.name, kind, ready_ms, 0.0)
        )
        memory = sum(p.memory_full_info().pss for p in running.tree())
        running.start.memory_mb = memory / 1e6
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200 now."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            return connection.recv(4096).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    except OSError:
        return False


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
    and what the open loop saw. The ratios are medians over pairs."""

    bare_us: list[float]
    served_us: dict[str, list[float]]
    ratios: dict[str, float]
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
        bare, served, {label: statistics.median(r) for label, r in ratios.items()}, starts,
        arguments.rate, load.requests, load.wrong,
        load.percentile_ms(0.5), load.percentile_ms(0.99), start.ready_ms, start.memory_mb,
    )  # fmt: skip


def served_cpu_us(
    running: Running, questions: Sequence[Question], connections: int, seconds: float
) -> float:
    closed_loop(running.port, questions, connections, 0.1)
    cpu = running.cpu_s()
    load = closed_loop(running.port, questions, connections, seconds)
    cpu = running.cpu_s() - cpu
    if load.wrong:
        raise SystemExit(f"{load.wrong} wrong answers of {load.requests}")
    return 1e6 * cpu / load.requests


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


def show_efficientnet(result: EfficientNet) -> None:
    bare = statistics.median(result.bare_us)
    print(f"\nEfficientNet-Lite0 int8: {bare:.0f} us CPU an image in the bare engine")
    for label, ratio in result.ratios.items():
        us = statistics.median(result.served_us[label])
        count = len(result.served_us[label])
        print(f"served, {label}: {us:.0f} us, {ratio:.3f} times (median of {count} pairs)")
    for flags, starts in sorted(result.starts.items()):
        ready = statistics.median(s.ready_ms for s in starts)
        memory = statistics.median(s.memory_mb for s in starts)
        print(f"edgeserve run {flags}: ready after {ready:.0f} ms, {memory:.0f} MB")
    print(
        f"open loop, {result.rate:.0f} requests/s: p50 {result.p50_ms:.1f} ms, "
        f"p99 {result.p99_ms:.1f} ms, {result.wrong} wrong of {result.requests}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these servers")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="server, generator")
    parser.add_argument("--efficientnet", type=Path, help="a bundle of EfficientNet-Lite0")
    parser.add_argument("--rate", type=float, default=500.0, help="of the open loop")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.cores[1]})
    names = arguments.only or ["edgeserve", *REQUIREMENTS]
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
