"""External data behind links, as in the Hugging Face cache: followed for sources, never out by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeserve
from edgeserve.checking import check
from edgeserve.errors import SourceError
from edgeserve.runtimes.detect import resolve_target
from tests.conversion.tiny import F, model, node, noise, target, value


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """model.onnx and model.onnx_data in a snapshot, both links into blobs/."""
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/abc/onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    made = model(
        [node("MatMul", "x w", "y")], [value("x", F, "batch", 64)], [value("y", F, "batch", 64)],
        {"w": noise(64, 64)},
    )  # fmt: skip
    onnx.save_model(
        made, blobs / "model.onnx", save_as_external_data=True, location="model.onnx_data",
        size_threshold=100,
    )  # fmt: skip
    for name, blob in (("model.onnx", "aaa"), ("model.onnx_data", "bbb")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot / "model.onnx"


def test_they_convert_and_answer(cached: Path, tmp_path: Path) -> None:
    edgeserve.convert(cached, tmp_path / "m.edge", target=target(tmp_path, "onnxruntime"))
    x = noise(1, 64, seed=1)
    with edgeserve.load(tmp_path / "m.edge") as loaded:
        assert np.allclose(loaded.run({"x": x})["y"], x @ noise(64, 64), atol=1e-4)


def test_check_asks_the_engines_about_them(cached: Path) -> None:
    report = check(cached, [resolve_target("auto")])
    assert report.ok, report.findings


def test_a_location_that_leads_out_is_refused(tmp_path: Path) -> None:
    made = model([node("Add", "x w", "y")], [value("x", F, 64)], [value("y", F, 64)],
                 {"w": noise(64)})  # fmt: skip
    (tmp_path / "in").mkdir()
    onnx.save_model(
        made, tmp_path / "in/model.onnx", save_as_external_data=True, location="w.data",
        size_threshold=10,
    )  # fmt: skip
    text = (tmp_path / "in/model.onnx").read_bytes().replace(b"w.data", b"../w.d")
    (tmp_path / "in/model.onnx").write_bytes(text)
    (tmp_path / "in/w.data").rename(tmp_path / "w.d")
    with pytest.raises(SourceError, match="outside its folder"):
        edgeserve.convert(tmp_path / "in/model.onnx", tmp_path / "m.edge")
