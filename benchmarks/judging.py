"""How close int8 comes to its source on the networks of this repository, sound ones and broken ones: what the
default bounds of `convert` are taken from.

    python benchmarks/judging.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import edgeserve
from edgeserve.bundle import Fidelity
from tests import networks
from tests.conversion import test_judging as made
from tests.conversion.test_repair import TARGET
from tests.conversion.test_repair import network as blocks


def cases() -> list[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    random = np.random.default_rng(0)
    means = random.normal(size=(160, 3, 1, 1))
    coloured = (means + 0.3 * random.normal(size=(160, 3, 16, 16))).astype(np.float32)
    vectors = random.normal(size=(160, 256)).astype(np.float32)
    tokens = random.normal(size=(160, 8, 64)).astype(np.float32)
    return [
        ("six blocks, sound", blocks(None), {"x": coloured}),
        ("six blocks, one rescaled", blocks(2), {"x": coloured}),
        ("bottlenecks", networks.bottlenecks(), {"image": networks.coloured(160)}),
        ("bottlenecks, rescaled", networks.bottlenecks(30.0), {"image": networks.coloured(160)}),
        ("perceptron", networks.perceptron(), {"x": vectors}),
        ("attention", networks.attention(), {"x": tokens}),
        ("small CNN, two outputs", networks.small_cnn(), {"image": networks.images(160)}),
        ("age regressor, channels uneven", made.regressor(), {"x": made.data(160)}),
        ("two scales, channels uneven", made.two_outputs(), {"x": made.data(160)}),
    ]


def main() -> None:
    print("| network | variant | output | SQNR, dB | agrees | cosine |\n|---|---|---|---|---|---|")
    for name, model, data in cases():
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            onnx.save(model, folder / "model.onnx")
            np.savez(folder / "data.npz", **data)
            (folder / "one.toml").write_text(TARGET)
            report = edgeserve.convert(
                folder / "model.onnx", folder / "m.edge", target=str(folder / "one.toml"),
                calibrate=folder / "data.npz", calibration_samples=64, min_fidelity=0.0,
                recipes=("static", "static-equalized", "static-percentile", "dynamic"),
            )  # fmt: skip
            for row in report.rows:
                if row.measured is not None and row.precision == "int8":
                    show(name, row.variant, row.measured.fidelity)


def show(name: str, variant: str, fidelity: Fidelity) -> None:
    for o in fidelity.outputs:
        agrees = "" if o.agreement is None else f"{100 * o.agreement:.1f} %"
        cosine = "" if o.cosine is None else f"{o.cosine:.4f}"
        decibels = "" if o.sqnr_db is None else f"{o.sqnr_db:.1f}"
        print(
            f"| {name} | `{variant}` | {o.worst} | {decibels} | {agrees} | {cosine} |", flush=True
        )


if __name__ == "__main__":
    main()
