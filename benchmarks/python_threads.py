"""How `Model.run` of the Python API scales: one bundle, called from one thread and from several.

    python benchmarks/python_threads.py [--callers 2] [--seconds 2] [--rounds 3]

Engines, instances and numbers of callers take turns; every answer is compared. Printed are calls a second, medians
of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import edgeserve
from edgeserve.bundle import Candidate
from tests.serve.slow import slow, slow_bundle


def rate(model: edgeserve.Model, callers: int, seconds: float) -> float:
    """Calls a second of so many threads."""
    inputs = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    expected = slow(inputs)
    counts = [0] * callers
    end = time.monotonic() + seconds

    def call(number: int) -> None:
        while time.monotonic() < end:
            outputs = model.run({"x": inputs})
            np.testing.assert_allclose(outputs["y"], expected, rtol=1e-3, atol=1e-3)
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(n,)) for n in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{'engine':12} {'instances':>9} {'1 caller':>9} {given.callers:>2} callers")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = {}
        for engine in ("openvino", "onnxruntime"):
            chain = (Candidate("onnx-fp32", engine, "cpu"),)
            bundle = slow_bundle(Path(folder) / engine, chain)
            for instances in (1, 0):
                model = edgeserve.load(bundle, threads=1, instances=instances)
                models[engine, instances] = stack.enter_context(model)
        rates: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in models}
        for _ in range(given.rounds):
            for key, model in models.items():
                each = [rate(model, callers, given.seconds) for callers in (1, given.callers)]
                rates[key].append((each[0], each[1]))
    for (engine, instances), found in rates.items():
        one, several = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{engine:12} {instances or 'chosen':>9} {one:9.0f} {several:10.0f}")


if __name__ == "__main__":
    main()
