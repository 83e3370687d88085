"""Many requests with rude clients and reloads between them; what the server then still holds.

    python -m tests.soak.soak --requests 1000000

Prints a line for each sample and the verdict; exit code 1 when an answer was wrong, resident memory grew
by more than 2 % after the warm-up, or descriptors, threads or shared memory were left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from benchmarks.load import Load, Question, closed_loop
from tests.bundles import linear
from tests.conformance.models import labelled_bundle
from tests.conformance.process import Served, serve
from tests.soak.rude import RudeClients

CONNECTIONS: Final = 16
SEGMENT_S: Final = 2.0
RELOAD_S: Final = 1.0
WARM_SHARE: Final = 0.2
DRIFT_LIMIT: Final = 0.02


@dataclass
class Sample:
    """What the server held after so many requests, with nobody connected."""

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
    samples: list[Sample] = field(default_factory=list)

    @property
    def drift(self) -> float:
        """Growth of resident memory from the end of the warm-up to the end, as a share: medians of a
        fifth of the samples each."""
        warm = [s for s in self.samples if s.requests >= WARM_SHARE * self.load.requests]
        window = max(1, len(warm) // 5)
        first = statistics.median(s.rss for s in warm[:window])
        last = statistics.median(s.rss for s in warm[-window:])
        return last / first - 1

    def leaks(self) -> list[str]:
        """What the server holds more of at the end, when nobody is connected, than it ever did in the
        third after the warm-up."""
        warm = [s for s in self.samples if s.requests >= WARM_SHARE * self.load.requests]
        early, last = warm[: max(1, len(warm) // 3)], self.samples[-1]
        found = []
        for name in ("descriptors", "threads", "shared"):
            most = max(getattr(sample, name) for sample in early)
            if getattr(last, name) > most:
                found.append(f"{name}: {most} -> {getattr(last, name)}")
        return found


def questions() -> list[Question]:
    """Requests of several sizes with their answers: batches of 1 to 8 rows."""
    random = np.random.default_rng(0)
    asked = []
    for rows in range(1, 9):
        x = random.normal(size=(rows, 4)).astype(np.float32)
        tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        head = f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}"
        asked.append(Question(head.encode() + b"\r\n\r\n" + body, linear(x).ravel(), _numbers))
    return asked


def _numbers(document: object) -> list[float]:
    found: list[float] = document["outputs"][0]["data"]  # type: ignore[index]
    return found


def soak(requests: int, *, verbose: bool = False) -> Soak:
    """Ask until `requests` were answered. The server must end cleanly."""
    result = Soak()
    with tempfile.TemporaryDirectory() as folder:
        bundle = labelled_bundle(Path(folder))
        with serve(bundle, "--model-control") as served:
            port = int(served.http.rpartition(":")[2])
            asked = questions()
            with RudeClients(port, asked[0].wire) as rude, Reloads(served.url) as reloads:
                while result.load.requests < requests:
                    result.load.add(closed_loop(port, asked, CONNECTIONS, SEGMENT_S))
                    result.samples.append(_sample(served, result.load.requests))
                    if verbose:
                        print(result.samples[-1], flush=True)
            result.rude, result.reloads = sum(rude.done.values()), reloads.done
            result.samples.append(_sample(served, result.load.requests))
    return result


class Reloads:
    """A thread that has the model loaded again every second while it serves; use it with `with`."""

    def __init__(self, url: str) -> None:
        self.done = 0
        self._url = f"{url}/v2/repository/models/linear/load"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reloads:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(RELOAD_S):
            with urllib.request.urlopen(self._url, b"{}", timeout=30):
                self.done += 1


def _sample(served: Served, requests: int) -> Sample:
    process = psutil.Process(served.popen.pid)
    connections = {c.fd for c in process.net_connections() if c.status != psutil.CONN_LISTEN}
    return Sample(
        requests,
        process.memory_info().rss,
        process.num_fds() - len(connections - {-1}),
        process.num_threads(),
        sum(_shared(p.pid) for p in (process, *process.children(recursive=True))),
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
        f"{found.load.requests} requests, {found.load.wrong} wrong, {found.rude} rude clients, "
        f"{found.reloads} reloads"
    )
    print(f"{found.load.rate:.0f} requests/s, p99 {found.load.percentile_ms(0.99):.1f} ms")
    print(f"resident {first.rss / 1e6:.1f} MB at first, {last.rss / 1e6:.1f} MB at the end")
    print(f"drift after the warm-up: {found.drift:+.2%}; leaks: {found.leaks() or 'none'}")
    sys.exit(found.load.wrong > 0 or found.drift > DRIFT_LIMIT or bool(found.leaks()))


if __name__ == "__main__":
    main()
