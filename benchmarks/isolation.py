"""What a process of its own costs a call: the same session in this process and in an isolated process, in turns.

    python benchmarks/isolation.py [--json FILE]

Tiny: a 4x3 linear model. 602 KB: a photograph of 3x224x224 FP32 into a model that reads all of it, with
a small answer and with one as large.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgeserve.bundle import Bundle
from edgeserve.chain import open_candidate
from edgeserve.isolation import ProcessLimits, open_isolated
from edgeserve.runtimes import LoadOptions, Session
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear_bundle, write_bundle
from tests.isolation.networks import WIDTH, wide_bundle

BLOCK = 200
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, bundle in bundles(Path(folder)).items():
            rows.append({"case": name, **compare(bundle)})
    print(
        "| call | in | out | this process, us | own process, us | added p50, us | added p99, us |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['case']} | {row['in_bytes'] / 1000:.1f} kB | {row['out_bytes'] / 1000:.1f} kB "
            f"| {row['inside_p50']:.1f} | {row['isolated_p50']:.1f} "
            f"| {row['isolated_p50'] - row['inside_p50']:.1f} | {row['isolated_p99'] - row['inside_p99']:.1f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def bundles(folder: Path) -> dict[str, Bundle]:
    return {
        "tiny": Bundle.open(linear_bundle(folder)),
        "602 KB in, small answer": sum_bundle(folder),
        "602 KB in, 602 KB out": wide_bundle(folder),
    }


def sum_bundle(folder: Path) -> Bundle:
    """y = sum(x): FP32[batch,150528] -> FP32[batch,1]."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
    )
    graph.node[0].input.append("axes")
    graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", WIDTH)),),
        (TensorSpec("y", "FP32", ("batch", 1)),),
        max_batch=64,
    )
    x = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)
    path = write_bundle(folder, "sum", model, interface, {"x": x}, {"y": x.sum(1, keepdims=True)})
    return Bundle.open(path)


def compare(bundle: Bundle) -> dict[str, float]:
    """Both sessions in turns, blocks of calls; medians over all calls, in us."""
    candidate = bundle.manifest.chain[0]
    inside = open_candidate(bundle, candidate, threads=1, spin=False)
    options = LoadOptions(threads=1, spin=False)
    isolated = open_isolated(
        candidate.runtime,
        bundle.variant_files(candidate.variant),
        candidate.device,
        options,
        label=candidate.label,
        limits=ProcessLimits(),
    )
    x = {n: a[:1] for n, a in bundle.golden()[0].items()}
    times: dict[str, list[float]] = {"inside": [], "isolated": []}
    for _ in range(ROUNDS):
        for name, session in (("inside", inside), ("isolated", isolated)):
            times[name] += block(session, x)[BLOCK // 10 :]
    outputs = inside.run(x)
    isolated.close()
    inside.close()
    found = {
        "in_bytes": sum(a.nbytes for a in x.values()),
        "out_bytes": sum(a.nbytes for a in outputs.values()),
    }
    for name, seconds in times.items():
        found[f"{name}_p50"] = float(np.percentile(seconds, 50)) * 1e6
        found[f"{name}_p99"] = float(np.percentile(seconds, 99)) * 1e6
    return found


def block(session: Session, inputs: dict[str, np.ndarray]) -> list[float]:
    times = []
    for _ in range(BLOCK):
        began = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
