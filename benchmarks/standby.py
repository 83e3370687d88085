"""What a standby costs in memory, and what it saves when the device is lost.

    python benchmarks/standby.py [--repeats 5]

A model of 42 MB: the serving candidate's process is killed, and the next request is timed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, ChainOptions
from edgeserve.isolation import IsolatedSession
from tests.serve.slow import slow_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("STANDBY", "BUNDLE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(*one(*arguments.one))
        return
    print("| standby | memory of the server, MB | the request at the fault, ms | usual, ms |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bundle = slow_bundle(Path(folder))
        found: dict[str, list[list[float]]] = {"warm": [], "cold": []}
        for _ in range(arguments.repeats):
            for standby, samples in found.items():  # in turns, each in a fresh process
                command = [sys.executable, __file__, "--one", standby, str(bundle)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                samples.append([float(v) for v in done.stdout.split()])
        for standby, samples in found.items():
            memory, fault, usual = (median(column) for column in zip(*samples, strict=True))
            print(f"| {standby} | {memory:.0f} | {fault:.0f} | {usual:.1f} |")


def one(standby: str, path: str) -> tuple[float, float, float]:
    """Resident MB without the isolated process, ms of the request at the fault, median ms before it."""
    options = ChainOptions(
        inject=("gpu:stand-in",), standby="warm" if standby == "warm" else "cold", reopen_s=100.0
    )
    with Chain(Bundle.open(path), options) as chain:
        deadline = time.monotonic() + 60
        while standby == "warm" and not chain.attempts[1].ok and time.monotonic() < deadline:
            time.sleep(0.05)
        x = np.ones((1, 4), np.float32)
        usual = [timed(chain, x) for _ in range(30)]
        memory = psutil.Process().memory_info().rss / 1e6
        assert isinstance(chain.session, IsolatedSession)
        chain.session.when_lost(lambda error: None)  # so that the request is the first to notice
        os.kill(chain.session.pid, signal.SIGKILL)
        fault = timed(chain, x)
        assert chain.candidate.device == "cpu"
    return memory, fault, median(usual)


def timed(chain: Chain, x: np.ndarray) -> float:
    began = time.perf_counter()
    chain.run({"x": x})
    return 1000.0 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
