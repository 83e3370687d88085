"""Many requests with rude clients and reloads between them; what the server then still holds.

    python -m tests.soak.soak --requests 1000000

A warm-up with quick reloads first takes the heap to its size. Prints a line for each sample and the
verdict; exit code 1 when an answer was wrong, resident memory grew by more than 2 %, or descriptors,
threads or shared memory were left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from benchmarks.load import Load, Question, closed_loop
from tests.bundles import linear, linear_bundle, write_bundle
from tests.conformance.process import Served, serve
from tests.networks import SMALL_CNN, images, small_cnn
from tests.soak.changes import Calls, Reloads
from tests.soak.rude import RudeClients

CONNECTIONS: Final = 16
SEGMENT_S: Final = 1.0
WARM_UP_S: Final = 20.0
WARM_UP_PAUSE_S: Final = 0.2
RELOAD_S: Final = 0.3
SETTLING_S: Final = 20.0
DRIFT_LIMIT: Final = 0.02


@dataclass
class Sample:
    """What the server's processes held after so many requests, but for open connections."""

    requests: int
    rss: int
    descriptors: int
    threads: int
    shared: int


@dataclass
class Soak:
    """What a soak found."""

    load: Load = field(default_factory=Load)
    rude: int = 0
    reloads: int = 0
    calls: int = 0
    samples: list[Sample] = field(default_factory=list)

    @property
    def drift(self) -> float:
        """Growth of resident memory from the first fifth of the samples to the last, as a share of it: of
        the least in each, for models that are being loaded or replaced stand there twice, now one, now
        three of them. What is not given back stays in every sample."""
        first, last = self._ends()
        return min(last) / min(first) - 1

    @property
    def median_drift(self) -> float:
        """The same of the medians, with the models that happened to be loading."""
        first, last = self._ends()
        return statistics.median(last) / statistics.median(first) - 1

    def _ends(self) -> tuple[list[int], list[int]]:
        window = max(1, len(self.samples) // 5)
        resident = [sample.rss for sample in self.samples]
        return resident[:window], resident[-window:]

    def leaks(self) -> list[str]:
        """What the server holds more of at the end, when nobody is connected, than it ever did in the
        first third."""
        early, last = self.samples[: max(1, len(self.samples) // 3)], self.samples[-1]
        found = []
        for name in ("descriptors", "threads", "shared"):
            most = max(getattr(sample, name) for sample in early)
            if getattr(last, name) > most:
                found.append(f"{name}: {most} -> {getattr(last, name)}")
        return found


def models(folder: Path) -> Path:
    """A repository of a model run on the event loop, one run on worker threads, and one that nobody asks."""
    linear_bundle(folder)
    linear_bundle(folder, "spare")
    golden = images(2)
    outputs = dict(zip(("logits", "features"), _cnn(golden), strict=True))
    write_bundle(folder, "cnn", small_cnn(), SMALL_CNN, {"image": golden}, outputs)
    return folder


def _cnn(image: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(small_cnn().SerializeToString())
    found: list[np.ndarray] = session.run(["logits", "features"], {"image": image})
    return found


def questions() -> list[Question]:
    """Requests of several sizes with their answers: numbers as JSON, batches of 1 to 8 rows, and one
    image in nine as binary data."""
    random = np.random.default_rng(0)
    asked = []
    for rows in range(1, 9):
        x = random.normal(size=(rows, 4)).astype(np.float32)
        tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        asked.append(Question(_post("linear", body), linear(x).ravel(), _numbers))
    image = images(1)
    entry = {
        "name": "image",
        "shape": list(image.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": image.nbytes},
    }
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "logits"}]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    wire = _post("cnn", head + image.tobytes(), length)
    return [*asked, Question(wire, _cnn(image)[0].ravel(), _numbers)]


def _post(model: str, body: bytes, more: str = "") -> bytes:
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _numbers(document: object) -> list[float]:
    found: list[float] = document["outputs"][0]["data"]  # type: ignore[index]
    return found


def soak(requests: int, *, verbose: bool = False) -> Soak:
    """Ask until `requests` were answered. The server must end cleanly."""
    result = Soak()
    with tempfile.TemporaryDirectory() as name:
        folder = models(Path(name))
        with serve(folder, "--model-control") as served:
            port = int(served.http.rpartition(":")[2])
            asked, spare = questions(), folder / "spare.edge"
            with Reloads(served, spare, WARM_UP_PAUSE_S) as quick:
                early = closed_loop(port, asked, CONNECTIONS, WARM_UP_S)
            result.load.wrong = early.wrong + quick.failed
            with (
                RudeClients(port, asked[0].wire) as rude,
                Reloads(served, spare, RELOAD_S) as reloads,
                Calls(served.grpc) as calls,
            ):
                while result.load.requests < requests:
                    result.load.add(closed_loop(port, asked, CONNECTIONS, SEGMENT_S))
                    result.samples.append(_sample(served, result.load.requests))
                    if verbose:
                        print(result.samples[-1], flush=True)
            result.rude, result.reloads = sum(rude.done.values()), reloads.done
            result.calls = calls.done
            result.load.wrong += calls.wrong + reloads.failed
            _settle(served, result)
    return result


def _settle(served: Served, result: Soak) -> None:
    """The last sample: once the models that were being replaced are closed, or that has taken too long."""
    until = time.monotonic() + SETTLING_S
    result.samples.append(_sample(served, result.load.requests))
    while result.leaks() and time.monotonic() < until:
        time.sleep(0.2)
        result.samples[-1] = _sample(served, result.load.requests)


def _sample(served: Served, requests: int) -> Sample:
    process = psutil.Process(served.popen.pid)
    family = [process, *process.children(recursive=True)]
    connections = {c.fd for c in process.net_connections() if c.status != psutil.CONN_LISTEN}
    return Sample(
        requests,
        sum(p.memory_info().rss for p in family),
        sum(p.num_fds() for p in family) - len(connections - {-1}),
        sum(p.num_threads() for p in family),
        sum(_shared(p.pid) for p in family),
    )


def _shared(pid: int) -> int:
    """How many mappings of shared memory a process has."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return sum(line.count("/dev/shm/") or line.count("/memfd:") for line in maps.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    found = soak(parser.parse_args().requests, verbose=True)
    first, last = found.samples[0], found.samples[-1]
    print(
        f"{found.load.requests} requests and {found.calls} gRPC calls, {found.load.wrong} wrong; "
        f"{found.rude} rude clients, {found.reloads} reloads"
    )
    print(f"{found.load.rate:.0f} requests/s, p99 {found.load.percentile_ms(0.99):.1f} ms")
    print(f"resident {first.rss / 1e6:.1f} MB at first, {last.rss / 1e6:.1f} MB at the end")
    print(f"drift: {found.drift:+.2%}, of the medians {found.median_drift:+.2%}")
    print(f"leaks: {found.leaks() or 'none'}")
    sys.exit(found.load.wrong > 0 or found.drift > DRIFT_LIMIT or bool(found.leaks()))


if __name__ == "__main__":
    main()
