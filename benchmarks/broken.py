"""A model that plain int8 breaks, and what `convert` does about it.

    python benchmarks/broken.py efficientnet_lite0.onnx data [--case 1|2|3]

Channels of linear bottlenecks (convolutions without an activation, joined by residual additions) are multiplied
by random factors from 1/64 to 64, and the convolutions that read them divided by the same: the function
does not change, but ranges of channels differ by thousands. Once in one stage, once in all of them.
`data` is what examples/imagenet/split.py writes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve import Preprocess, convert

FACTOR = 64.0
# title, the stage to rescale (None: all), the recipes to try (none: what auto tries)
CASES: list[tuple[str, int | None, list[str]]] = [
    ("one stage", 2, []),
    ("one stage, restoring layers alone,", 2, ["static", "static-restored"]),
    ("all stages", None, []),
]


def rescaled(source: Path, destination: Path, stages: int | None) -> Path:
    """Write the rescaled model: `stages` None for all, else only the stage with this number."""
    model = onnx.load(source)
    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    linear = {
        node.output[0]
        for node in graph.node
        if node.op_type in ("Conv", "Add")
        and readers[node.output[0]]
        and all(r.op_type in ("Conv", "Add") for r in readers[node.output[0]])
    }
    group = {name: name for name in linear}
    for node in graph.node:
        if node.op_type == "Add" and {*node.input, node.output[0]} <= linear:
            joined = {group[n] for n in (*node.input, node.output[0])}
            group = {n: node.output[0] if g in joined else g for n, g in group.items()}
    random = np.random.default_rng(0)
    for number, name in enumerate(dict.fromkeys(group.values())):
        if stages is not None and number != stages:
            continue
        tensors = {n for n, g in group.items() if g == name}
        writers = [n for n in graph.node if n.op_type == "Conv" and n.output[0] in tensors]
        behind = [n for n in graph.node if n.op_type == "Conv" and n.input[0] in tensors]
        channels = weights[writers[0].input[1]].shape[0]
        spread = np.log(FACTOR)
        scale = np.exp(random.uniform(-spread, spread, channels)).astype(np.float32)
        for node in writers:
            weights[node.input[1]] *= scale[:, None, None, None]
            weights[node.input[2]] *= scale
        for node in behind:
            weights[node.input[1]] /= scale[None, :, None, None]
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    onnx.save(model, destination)
    return destination


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="only this one")
    arguments = parser.parse_args()
    cases = CASES if arguments.case is None else [CASES[arguments.case - 1]]
    with tempfile.TemporaryDirectory() as name:
        for title, stage, recipes in cases:
            source = rescaled(arguments.model, Path(name) / "rescaled.onnx", stage)
            report = convert(
                source, Path(name) / "out.edge", target="cpu-x86", force=True, recipes=recipes,
                calibrate=arguments.data / "calibration",
                evaluate=arguments.data / "evaluation" / "labels.csv",
                preprocess=Preprocess(224, 224, crop_ratio=0.875, interpolation="bicubic",
                                      mean=(127.0,), std=(128.0,)),
            )  # fmt: skip
            print(f"\n{title} rescaled; fp32 top-1 {100 * (report.reference_accuracy or 0):.1f} %")
            for row in report.rows:
                found = row.measured
                if found is not None and found.accuracy is not None:
                    print(
                        f"  {'chosen' if row.chosen else '      '} {row.runtime:12}{row.variant:34}"
                        f"{100 * found.accuracy.top1:5.1f} %{found.speedup:6.2f}x  "
                        f"{found.int8_compute_ops}/{found.compute_ops} int8"
                    )
            for remark in report.remarks:
                print(f"  {remark}")
            if report.layers:
                noisiest = ", ".join(f"{e.node} {e.sqnr_db:.1f} dB" for e in report.layers[:5])
                print(f"  noisiest layers: {noisiest}", flush=True)


if __name__ == "__main__":
    main()
