"""The servers that serving.py measures: how each is started, asked, and found to be running."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))

from benchmarks.load import Question
from edgeserve.conversion.tools.environment import cache_root
from tests.bundles import linear

NAMES = {"tiny": "linear", "image": "image", "grpc": "linear"}
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
    from edgeserve.wire import messages

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

    def threads_cpu_s(self) -> float:
        """Of the threads that live, to the nanosecond; `cpu_s` is in ticks of 10 ms."""
        files = [f for p in self.tree() for f in Path(f"/proc/{p.pid}/task").glob("*/schedstat")]
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

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
