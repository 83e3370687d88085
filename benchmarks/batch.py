"""Rows per second of `edgeserve infer --batch` against the offline throughput that `edgeserve bench` measures.

    python benchmarks/batch.py [BUNDLE ...] [--rounds 5] [--seconds 10] [--json FILE]

Without a bundle: a small convolutional network on 64x64 pixels, written here. The rows are an .npy of random
tensors, enough for so many seconds; the results go to JSON lines. The two take turns; each round gives a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxruntime

from edgeserve.bundle import Bundle
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle
from tests.networks import Sketch

COMMAND = [sys.executable, "-m", "edgeserve"]
MOST_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        bundles = arguments.bundles or [small_network(folder)]
        results = [compare(b, folder, arguments.rounds, arguments.seconds) for b in bundles]
    print("| bundle | bench offline, rows/s | infer --batch, rows/s | ratio | rounds |")
    print("|---|---|---|---|---|")
    for found in results:
        rounds = ", ".join(f"{r:.2f}" for r in found["ratios"])
        print(
            f"| {found['bundle']} | {found['bench']:,.0f} | {found['batch']:,.0f} "
            f"| {found['ratio']:.2f} | {rounds} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def compare(bundle: Path, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    rate = offline(bundle)
    rows = folder / "rows.npy"
    write_rows(bundle, rows, rate * seconds)
    benched, batched = [], []
    for _ in range(rounds):
        benched.append(offline(bundle))
        batched.append(batch(bundle, rows, folder / "results.jsonl"))
    ratios = [b / a for a, b in zip(benched, batched, strict=True)]
    return {
        "bundle": bundle.stem,
        "bench": statistics.median(benched),
        "batch": statistics.median(batched),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def offline(bundle: Path) -> float:
    """The best way of the first candidate, in samples per second."""
    report = called(["bench", str(bundle), "--duration", "3", "--json"])
    rates = report["measurements"][0]["offline"]["rates"]
    return float(rates[0]["samples_per_s"])


def batch(bundle: Path, rows: Path, output: Path) -> float:
    """Rows per second of a whole run, from the first row read to the last one on disk."""
    arguments = ["infer", str(bundle), "--batch", str(rows), "-o", str(output), "--force", "--json"]
    return float(called(arguments)["rows_per_s"])


def called(arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_rows(bundle: Path, path: Path, count: float) -> None:
    (spec,) = Bundle.open(bundle).manifest.interface.inputs
    shape = tuple(int(d) for d in spec.shape[1:])
    row_bytes = int(np.prod(shape)) * spec.numpy_dtype.itemsize
    rows = int(max(64, min(count, MOST_BYTES // row_bytes)))
    random = np.random.default_rng(0)
    if spec.numpy_dtype.kind == "f":
        block = random.normal(size=(min(rows, 256), *shape)).astype(spec.numpy_dtype)
    else:
        block = random.integers(0, 255, (min(rows, 256), *shape)).astype(spec.numpy_dtype)
    np.save(path, np.resize(block, (rows, *shape)))


def small_network(folder: Path) -> Path:
    """Three convolutions on 3x64x64 pixels and ten classes: about a millisecond on one core."""
    sketch = Sketch()
    x = sketch.op("Relu", "r1", sketch.conv("c1", "image", 3, 16, 3))
    x = sketch.op("Relu", "r2", sketch.conv("c2", x, 16, 32, 3))
    x = sketch.op("Relu", "r3", sketch.conv("c3", x, 32, 32, 3))
    logits = sketch.classify(x, 32, 10)
    shapes: dict[str, list[int | str]] = {"image": ["batch", 3, 64, 64]}
    model = sketch.model(shapes, {logits: ["batch", 10]})
    golden = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    outputs = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": golden})
    interface = Interface(
        (TensorSpec("image", "FP32", ("batch", 3, 64, 64)),),
        (TensorSpec(logits, "FP32", ("batch", 10)),),
        max_batch=64,
    )
    return write_bundle(
        folder, "small-cnn", model, interface, {"image": golden}, {logits: outputs[0]}
    )


if __name__ == "__main__":
    main()
