"""One cell of the matrix: a real server process whose GPU, played by the CPU, fails on order under load.

Every answer is compared; what the server counted is read from its metrics.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.bundles import linear
from tests.conformance.process import Served, serve

Moment = Literal["load", "warm-up", "run", "reload"]
Protocol = Literal["http", "grpc"]

MOMENTS: Final[tuple[Moment, ...]] = ("load", "warm-up", "run", "reload")
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
# Fault -> reason in edgeserve_fallback_total by moment; None: the device goes on serving. What is
# missing cannot happen then.
FAULTS: Final[dict[str, dict[Moment, str | None]]] = {
    "open-failure": {"load": "unavailable", "reload": "unavailable"},
    "slow-open=1": {"load": None, "reload": None},
    "exception": {"load": "exception", "warm-up": "exception", "run": None, "reload": None},
    "segv": {"load": "unavailable", "warm-up": "crash", "run": "crash", "reload": "crash"},
    "kill": {"load": "unavailable", "warm-up": "crash", "run": "crash", "reload": "crash"},
    "hang": {"load": "unavailable", "warm-up": "hang", "run": "hang", "reload": "hang"},
    "nan": {"warm-up": "golden", "run": "non-finite", "reload": "non-finite"},
    "wrong": {"warm-up": "golden", "run": "drift", "reload": "drift"},
    "oom": {"load": "out-of-memory", "warm-up": "out-of-memory", "run": None, "reload": None},
    "disappear=1": {"load": "unavailable", "warm-up": "crash", "run": "crash", "reload": "crash"},
}  # fmt: skip
# What comes once while it runs: the request is answered by the next candidate, and the device serves on.
ONCE: Final = {"exception"}
# Later than the golden samples and the engine's warm-up: while clients ask.
CALL: Final = 120
CLIENTS: Final = 3
GPU, CPU = "onnxruntime/gpu/onnx-fp32", "onnxruntime/cpu/onnx-fp32"
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class Reply:
    """One request: when it was sent (time.monotonic), how long it took, and what came back. `problem` is
    None for the right numbers."""

    sent: float
    seconds: float
    device: str
    problem: str | None


@dataclass
class Cell:
    """What happened in one cell."""

    fault: str
    moment: Moment
    protocol: Protocol
    replies: list[Reply] = field(default_factory=list)
    fallbacks: Counter[str] = field(default_factory=Counter)
    replays: Counter[str] = field(default_factory=Counter)
    recovered: int = 0
    answered: float = 0.0
    serving: str = ""
    recover_s: float | None = None
    fault_at: float | None = None

    @property
    def lost(self) -> int:
        return sum(1 for r in self.replies if r.problem is not None and r.problem != "wrong")

    @property
    def wrong(self) -> int:
        return sum(1 for r in self.replies if r.problem == "wrong")


def cells() -> Iterator[tuple[str, Moment, Protocol]]:
    for fault, moments in FAULTS.items():
        for moment in moments:
            for protocol in PROTOCOLS:
                yield fault, moment, protocol


def faults_of(fault: str, moment: Moment) -> list[str]:
    """As --inject takes them. During a reload the old model's device fails, and the new one's at load,
    where the fault is possible then."""
    where = {"load": ["load"], "warm-up": ["warm-up"], "run": [str(CALL)]}
    if moment != "reload":
        return [f"gpu:{fault}@{when}" for when in where[moment]]
    if "load" in FAULTS[fault] and "run" not in FAULTS[fault]:
        return [f"gpu:{fault}@load"]
    return [f"gpu:{fault}@{CALL}"]


def run_cell(bundle: Path, fault: str, moment: Moment, protocol: Protocol) -> Cell:
    """Serve, ask from several clients until the fault is over and the device serves again, and read what
    was counted."""
    cell = Cell(fault, moment, protocol)
    arguments = ["--grpc-port", "0", "--model-control", "--reopen", "0.02", "--threads", "1"]
    # A busy machine may fail several attempts in a row: the pauses between them stay short.
    arguments += ["--reopen-longest", "1"]
    arguments += ["--inject", "gpu:stand-in", "--watchdog", "0.5" if fault == "hang" else "20"]
    opens_late = fault == "hang" and moment in ("load", "warm-up")
    arguments += ["--open-timeout", "8" if opens_late else "60"]
    arguments += ["--verify"] if fault == "wrong" else []
    # Requests of a batch that failed once are run apart on the same device, which is no replay.
    arguments += ["--no-batching"] if fault in ONCE else []
    for text in faults_of(fault, moment):
        arguments += ["--inject", text]
    with serve(bundle, *arguments) as server:
        clients = _Clients(server, protocol, cell.replies)
        with clients:
            clients.wait_for(lambda: len(cell.replies) >= 20)
            if moment == "reload":
                reload_model(server)
            clients.wait_for(lambda: _is_over(server, cell))
            seen = len(cell.replies)
            clients.wait_for(lambda: len(cell.replies) >= seen + 20)
        # After a reload the new model's device may have failed just now.
        _wait(lambda: _serves_again(server, cell))
    _time_recovery(cell)
    return cell


def _serves_again(server: Served, cell: Cell) -> bool:
    _read_metrics(server, cell)
    return cell.serving == "gpu"


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def _is_over(server: Served, cell: Cell) -> bool:
    """Whether what had to happen has happened, and the first candidate serves."""
    reason = FAULTS[cell.fault][cell.moment]
    counted = Cell(cell.fault, cell.moment, cell.protocol)
    _read_metrics(server, counted)
    if reason is not None and not counted.fallbacks[reason]:
        return False
    if cell.fault in ONCE and reason is None and not counted.replays:
        return False
    if cell.fault == "oom" and len(cell.replies) < 2 * CALL:
        return False
    return counted.serving == "gpu"


def _read_metrics(server: Served, cell: Cell) -> None:
    text = get(server, "/metrics").decode()
    cell.fallbacks.clear()
    cell.replays.clear()
    cell.recovered = 0
    serving: list[str] = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "edgeserve_fallback_total":
                assert sample.labels | {"reason": ""} == {
                    "model": "linear", "from": GPU, "to": CPU, "reason": "",
                }  # fmt: skip
                cell.fallbacks[sample.labels["reason"]] += int(sample.value)
            elif sample.name == "edgeserve_request_replayed_total":
                cell.replays[sample.labels["reason"]] += int(sample.value)
            elif sample.name == "edgeserve_recovered_total":
                cell.recovered += int(sample.value)
            elif sample.name == "edgeserve_requests_total":
                cell.answered = sample.value
            elif sample.name == "edgeserve_candidate_info" and sample.value == 1:
                found = sample.labels
                assert (found["model"], found["version"]) == ("linear", "1")
                serving.append("/".join(found[k] for k in ("runtime", "device", "variant")))
    assert serving in ([GPU], [CPU]), serving
    cell.serving = serving[0].split("/")[1]


def _time_recovery(cell: Cell) -> None:
    """The first answer that the device did not give, and how long until it gave one again."""
    replies = sorted(cell.replies, key=lambda r: r.sent + r.seconds)
    away = [r for r in replies if r.device not in ("gpu", "")]
    if not away:
        return
    last = max(r.sent + r.seconds for r in away)
    cell.fault_at = away[0].sent
    cell.recover_s = last - away[0].sent


def get(server: Served, path: str) -> bytes:
    connection = http.client.HTTPConnection(server.http, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def reload_model(server: Served) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=60)
    try:
        connection.request("POST", "/v2/repository/models/linear/load", b"")
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
    finally:
        connection.close()


class _Clients:
    """Threads that ask, one request after the other, until the block ends."""

    def __init__(self, server: Served, protocol: Protocol, replies: list[Reply]) -> None:
        ask = {"http": _http_asker, "grpc": _grpc_asker}[protocol]
        self._stop = threading.Event()
        self._replies = replies
        self._threads = [
            threading.Thread(target=self._run, args=(ask, server, number))
            for number in range(CLIENTS)
        ]

    def _run(self, asker: Any, server: Served, number: int) -> None:
        random = np.random.default_rng(number)
        with asker(server) as ask:
            while not self._stop.is_set():
                x = random.normal(size=(int(random.integers(1, 5)), 4)).astype(np.float32)
                sent = time.monotonic()
                try:
                    y, device = ask(x)
                except Exception as error:
                    self._note(sent, "", f"{type(error).__name__}: {error}")
                    return
                right = y.shape == (len(x), 3) and np.allclose(y, linear(x), rtol=1e-4, atol=1e-5)
                self._note(sent, device, None if right else "wrong")

    def _note(self, sent: float, device: str, problem: str | None) -> None:
        self._replies.append(Reply(sent, time.monotonic() - sent, device, problem))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        def checked() -> bool:
            failed = [r.problem for r in self._replies if r.problem]
            assert not failed, failed[:3]
            return condition()

        _wait(checked)

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def _http_asker(server: Served) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, str]]]:
    connection = http.client.HTTPConnection(server.http, timeout=60)

    def ask(x: np.ndarray) -> tuple[np.ndarray, str]:
        entry = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
        connection.request("POST", "/v2/models/linear/infer", json.dumps({"inputs": [entry]}))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {body.decode()}")
        answer = json.loads(body)
        output, device = answer["outputs"][0], response.headers["x-edgeserve-device"]
        if answer["parameters"]["edgeserve_device"] != device:
            raise RuntimeError("the header and the parameter name different devices")
        y = np.array(output["data"], np.float32).reshape(output["shape"])
        return y, device

    try:
        yield ask
    finally:
        connection.close()


@contextmanager
def _grpc_asker(server: Served) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, str]]]:
    import grpc

    from edgeserve.wire import messages

    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )

        def ask(x: np.ndarray) -> tuple[np.ndarray, str]:
            request = messages.ModelInferRequest(model_name="linear")
            request.inputs.add(name="x", datatype="FP32", shape=x.shape)
            request.raw_input_contents.append(x.tobytes())
            answer = call(request, timeout=60)
            y = np.frombuffer(answer.raw_output_contents[0], np.float32)
            device = answer.parameters["edgeserve_device"].string_param
            return y.reshape(tuple(answer.outputs[0].shape)), device

        yield ask
