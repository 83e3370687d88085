"""EfficientNet-Lite0: the bundle's first candidate against onnxruntime fp32, on the same cores, in turns.

    python benchmarks/imagenet.py efficientnet_lite0.onnx efficientnet_lite0.edge

Two ways to use the cores: one caller with all threads (latency), and one caller a core with one thread each
(throughput). Accuracy and sizes are those that `convert` measured and wrote into the bundle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeserve.bench.interleave import interleave
from edgeserve.bench.statistics import speedup_interval
from edgeserve.bundle import Bundle, VariantFiles
from edgeserve.chain import golden_batches, open_candidate
from edgeserve.devices import machine, usable_cores
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.tensors import Tensors


def measure(
    source: Path, bundle: Bundle, callers: int, threads: int, seconds: float
) -> dict[str, float]:
    """Images a second of both, and the ratio with its 95 % interval."""
    candidate = bundle.manifest.chain[0]
    inputs = golden_batches(bundle.manifest.interface, bundle.golden()[0])[0]
    fp32 = runtime("onnxruntime").load(
        VariantFiles("source", source, "onnx", "fp32", bundle.manifest.interface),
        "cpu",
        LoadOptions(threads=threads, instances=callers),
    )
    chosen = open_candidate(bundle, candidate, threads=threads, instances=callers)
    with ThreadPoolExecutor(callers) as pool:
        runs = {
            "fp32": _together(pool, fp32, inputs, callers),
            "chosen": _together(pool, chosen, inputs, callers),
        }
        times = interleave(runs, max_seconds=seconds)
    ratio = speedup_interval(times["fp32"], times["chosen"])
    return {
        "fp32_per_s": 1000.0 * callers * _EACH / float(np.median(times["fp32"].ms)),
        "chosen_per_s": 1000.0 * callers * _EACH / float(np.median(times["chosen"].ms)),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
    }


_EACH = 4  # images a caller runs in a round, so that starting the callers costs little


def _together(
    pool: ThreadPoolExecutor, session: Session, inputs: Tensors, callers: int
) -> Callable[[], object]:
    def some() -> None:
        for _ in range(_EACH):
            session.run(inputs)

    if callers == 1:
        return some
    return lambda: [f.result() for f in [pool.submit(some) for _ in range(callers)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    candidate = bundle.manifest.chain[0]
    variant = bundle.manifest.variant(candidate.variant)
    cores = usable_cores()
    figures = {
        "one caller, all threads": measure(arguments.source, bundle, 1, cores, arguments.seconds),
        "one caller a core": measure(arguments.source, bundle, cores, 1, arguments.seconds),
    }
    print(f"{machine().describe()}; {candidate.label}")
    print(f"{'':26}{'fp32/s':>8}{'chosen/s':>10}{'ratio':>7}  95 % interval")
    for name, row in figures.items():
        print(
            f"{name:26}{row['fp32_per_s']:8.0f}{row['chosen_per_s']:10.0f}{row['ratio']:6.2f}x"
            f"  {row['low']:.2f} to {row['high']:.2f}"
        )
    size = variant.size_bytes / bundle.manifest.source.size_bytes
    print(f"size: {variant.size_bytes / 1e6:.2f} MB, {size:.3f} of the source's")
    accuracy = variant.measured[0].accuracy if variant.measured else None
    if accuracy is not None:
        print(
            f"top-1 on {accuracy.samples} photographs: {100 * accuracy.top1:.2f} %, source "
            f"{100 * accuracy.reference:.2f} % (drop {accuracy.drop_points:.2f} points)"
        )
    if arguments.json:
        drop = accuracy.drop_points if accuracy else None
        arguments.json.write_text(
            json.dumps({"figures": figures, "size_ratio": size, "drop_points": drop}, indent=2)
        )


if __name__ == "__main__":
    main()
