"""An optional runtime: where it is tried, and where the report says why not."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import edgeserve
from edgeserve.conversion.report import Conversion
from tests.conversion.test_repair import matrices, network

TARGET = """
name = "two"
title = "onnxruntime, and LiteRT where that is faster"
arch = ["{arch}"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
[[chain]]
runtime = "litert"
device = "cpu"
precisions = ["int8"]
optional = true
networks = "matmul"
"""
HERE = 'x86_64", "AMD64", "aarch64", "arm64'

pytest.importorskip("ai_edge_litert")


def converted(model: onnx.ModelProto, folder: Path, arch: str = HERE, *, env: bool) -> Conversion:
    (folder / "two.toml").write_text(TARGET.format(arch=arch))
    onnx.save(model, folder / "model.onnx")
    return edgeserve.convert(
        folder / "model.onnx", folder / "m.edge", target=str(folder / "two.toml"), tool_env=env,
        min_fidelity=0.0,
    )  # fmt: skip


def reasons(report: Conversion) -> list[str]:
    return [r.reason for r in report.rows if r.runtime == "litert"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (network(None), "skipped: two uses litert for matmul networks only"),
        (matrices(), "skipped: a network this small is not worth another runtime"),
    ],
    ids=["convolutions", "small"],
)
def test_networks_it_is_not_for_are_not_converted_for_it(
    tmp_path: Path, model: onnx.ModelProto, why: str
) -> None:
    (reason,) = reasons(converted(model, tmp_path, env=False))
    assert reason.startswith(why)


@pytest.mark.slow
def test_where_speed_cannot_be_told_it_is_not_there(tmp_path: Path) -> None:
    assert reasons(converted(matrices(1024), tmp_path, "riscv64", env=False)) == []


@pytest.mark.slow
def test_what_keeps_it_from_being_tried_is_said_and_the_others_serve(tmp_path: Path) -> None:
    report = converted(matrices(1024), tmp_path, env=False)
    assert all("onnx2tf" in reason for reason in reasons(report))
    assert [c.runtime for c in report.chain] == ["onnxruntime"]


@pytest.mark.slow
def test_it_is_measured_beside_the_others_and_kept_where_it_is_faster(tmp_path: Path) -> None:
    report = converted(matrices(1024), tmp_path, env=True)
    row = next(r for r in report.rows if r.variant == "tflite-int8-dynamic")
    assert row.measured is not None
    assert row.measured.fidelity.cosine > 0.95
    best = max(r.measured.speedup for r in report.rows if r.measured and r.runtime != "litert")
    assert row.chosen == (row.measured.speedup >= 1.05 * best)
    assert ("litert" in {c.runtime for c in report.chain}) == row.chosen
