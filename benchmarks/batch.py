"""Rows per second of `edgeserve infer --batch` against the offline throughput that `edgeserve bench` measures.

    python benchmarks/batch.py [BUNDLE ...] [--rounds 9] [--seconds 3] [--json FILE]

Without a bundle: a small convolutional network on 64x64 pixels, written here. The rows are an .npy of random
tensors, enough to keep `bench` busy for `--seconds`; the results go to JSON lines. In each round the ways in which `bench` fills
the cores (1, 4 and 16 rows a call) are timed by its own function, then a whole run of `--batch`, from the first row
read to the last one on disk, on the same session. Medians of the rounds; the best way counts for `bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxruntime

from edgeserve.batch import BatchRun, LocalModel, TensorForm, open_source
from edgeserve.bench.throughput import BATCHES, batches_of, calls_per_second
from edgeserve.bundle import Bundle
from edgeserve.chain.golden import golden_batches
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle
from tests.networks import Sketch

MOST_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
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
    ways: dict[int, list[float]] = {}
    batched: list[float] = []
    with LocalModel(Bundle.open(bundle), None) as model:
        session, calls = model._chain.session, model.calls
        golden = golden_batches(model.interface, model.bundle.golden()[0])
        sizes = [1, *(n for n in BATCHES if n <= model.together)]

        def offline(size: int) -> float:
            batches = batches_of(golden, size)
            return size * calls_per_second(session.run, batches, calls, seconds / len(sizes))

        rows = folder / "rows.npy"
        write_rows(bundle, rows, seconds * max(offline(size) for size in sizes))
        for _ in range(rounds):
            for size in sizes:
                ways.setdefault(size, []).append(offline(size))
            batched.append(batch(model, rows, folder / "results.jsonl"))
    best = max(ways, key=lambda size: statistics.median(ways[size]))
    ratios = [b / a for a, b in zip(ways[best], batched, strict=True)]
    return {
        "bundle": bundle.stem,
        "bench": statistics.median(ways[best]),
        "batch": statistics.median(batched),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def batch(model: LocalModel, rows: Path, output: Path) -> float:
    source = open_source(rows, model.interface, None)
    form = TensorForm(model.interface, (), model.together)
    with BatchRun(rows, source, model, form, output, force=True) as run:
        return run.run().rows_per_s


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
