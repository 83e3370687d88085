"""TFLite's own detection head: what is past the count of what it found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.formats.reading import read_model
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.tensors import Interface
from tests.detector import SIZE, ssd_tflite

pytest.importorskip("ai_edge_litert")


def test_rows_past_the_count_hold_no_left_over_memory(tmp_path: Path) -> None:
    file = ssd_tflite(tmp_path / "ssd.tflite")
    report = read_model(file).report()
    interface = Interface(report.inputs, report.outputs)
    session = runtime("litert").load(
        VariantFiles("tflite", file, "tflite", "fp32", interface), "cpu", LoadOptions()
    )
    many = np.full((1, SIZE, SIZE, 3), 0.9, np.float32)
    one = np.zeros_like(many)
    one[0, 16:24, 24:32, 1] = 1
    try:
        boxes, classes, scores, count = (s.name for s in interface.outputs)
        assert session.run({"image": many})[count] > 1
        found = session.run({"image": one})
    finally:
        session.close()
    assert found[count] == 1
    assert found[scores][0, 0] == pytest.approx(1.0)
    for name in (boxes, classes, scores):
        assert not found[name][:, 1:].any()


def test_shapes_that_the_file_leaves_out_are_known(tmp_path: Path) -> None:
    report = read_model(ssd_tflite(tmp_path / "ssd.tflite", shapes=False)).report()
    assert [s.shape for s in report.outputs] == [(1, "?", 4), (1, "?"), (1, "?"), (1,)]
