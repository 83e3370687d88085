"""What fails in an engine is a row in the report with the engine's words; convert goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.errors import InvalidInput
from edgeserve.inspecting.placing import placements_here
from tests.conversion.tiny import (
    I64,
    F,
    calendar,
    looping,
    model,
    node,
    noise,
    saved,
    target,
    value,
)  # fmt: skip

pytest.importorskip("openvino")


def converted(
    made: onnx.ModelProto, folder: Path, **options: object
) -> tuple[edgeserve.api.Conversion, Path]:
    options.setdefault("target", target(folder, "openvino", "onnxruntime"))
    report = edgeserve.convert(saved(made, folder), folder / "m.edge", **options)  # type: ignore[arg-type]
    return report, folder / "m.edge"


def test_an_engine_that_fails_at_run_is_a_row_and_the_other_serves(tmp_path: Path) -> None:
    # OpenVINO compiles it, and fails on it: a range of zero-length parts cannot be split there.
    made = model(
        [
            node("Range", "zero n step", "r"),
            node("Cast", "r", "f", to=F),
            node("ReduceSum", "f", "s", keepdims=0),
            node("MatMul", "x w", "a"),
            node("Add", "a s", "y"),
        ],
        [value("x", F, "batch", 16), value("n", I64)],
        [value("y", F, "batch", 4)],
        {"zero": np.array(50, np.int64), "step": np.array(400_000_000, np.int64),
         "w": noise(16, 4)},
    )  # fmt: skip
    np.savez(tmp_path / "calib.npz", x=noise(64, 1, 16), n=np.full(64, 2_300_000_050, np.int64))
    report, _ = converted(
        made, tmp_path, calibrate=str(tmp_path / "calib.npz"),
        target=target(tmp_path, "openvino", "onnxruntime", precisions='"int8", "fp32"'),
    )  # fmt: skip
    lost = [r for r in report.rows if r.runtime == "openvino" and not r.reason.startswith("cannot")]
    assert lost
    assert all("INT32" in r.reason or "failed" in r.reason for r in lost)
    assert [c.runtime for c in report.chain] == ["onnxruntime"]


def test_a_loop_whose_trip_count_is_an_input_converts_without_data(tmp_path: Path) -> None:
    report, bundle = converted(looping(), tmp_path)
    assert "onnxruntime" in {c.runtime for c in report.chain}
    assert all(r.chosen for r in report.rows), report.rows
    with edgeserve.load(bundle) as loaded:
        x = noise(1, 8)
        once = loaded.run({"x": x, "n": np.array(1)})["y"]
        thrice = loaded.run({"x": x, "n": np.array(3)})["y"]
    assert not np.allclose(once, thrice)


@pytest.mark.slow
def test_a_probe_that_fails_on_sizes_of_one_harms_nothing(tmp_path: Path) -> None:
    # Reflect padding takes two samples or more: zeros of shape [1,1,1] fail.
    made = model(
        [node("Pad", "x pads", "p", mode="reflect"), node("Conv", "p w", "y")],
        [value("x", F, "batch", 1, "time")],
        [value("y", F, "batch", 4, "frames")],
        {"pads": np.array([0, 0, 2, 0, 0, 2], np.int64), "w": noise(4, 1, 3)},
    )
    report, bundle = converted(made, tmp_path)
    row = next(r for r in report.rows if r.runtime == "onnxruntime")
    assert row.measured is not None
    assert row.measured.compute_ops == 1
    for placed in placements_here(Bundle.open(bundle)):
        assert placed.placement is not None
        assert placed.placement.compute_ops == 1


def test_integers_beyond_int32_are_never_computed_in_int32(tmp_path: Path) -> None:
    # Proven on small values, so that OpenVINO serves; then real times come.
    np.savez(
        tmp_path / "small.npz",
        x=noise(64, 8),
        ts=np.random.default_rng(0).integers(0, 2**31, (64, 1)),
    )
    made, source = calendar(), tmp_path / "small.npz"
    report, bundle = converted(made, tmp_path, calibrate=str(source))
    assert {c.runtime for c in report.chain} == {"onnxruntime", "openvino"}
    manifest = Bundle.open(bundle).manifest
    first = next(c for c in manifest.chain if c.runtime == "openvino")
    x = np.zeros((1, 8), np.float32)
    now = np.array([[1_700_000_000_000]])
    with edgeserve.load(bundle) as both:
        wanted = float(now[0, 0] // 3_600_000 % 24)
        chain = both._chain
        chain._serving = chain.candidates.open(
            next(link for link in chain.links if link.candidate.label == first.label)
        )
        answer, who = chain.run({"x": x, "ts": now})
        assert answer["y"].item() == pytest.approx(wanted)
        assert who.runtime == "onnxruntime"
        assert both.candidate.runtime == "openvino"  # one request says nothing about the device
        assert both.run({"x": x, "ts": now % 2**31})["y"].shape == (1, 1)
    alone = edgeserve.convert(
        saved(made, tmp_path), tmp_path / "alone.edge", calibrate=str(source),
        target=target(tmp_path, "openvino"),
    )  # fmt: skip
    assert [c.runtime for c in alone.chain] == ["openvino"]
    with (
        edgeserve.load(tmp_path / "alone.edge") as only,
        pytest.raises(InvalidInput, match="computes input 'ts' in INT32"),
    ):
        only.run({"x": x, "ts": now})


def test_data_beyond_int32_keep_openvino_out_and_say_why(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "real.npz",
        x=noise(64, 8),
        ts=1_700_000_000_000 + np.random.default_rng(0).integers(0, 10**11, (64, 1)),
    )
    report, _ = converted(calendar(), tmp_path, calibrate=str(tmp_path / "real.npz"))
    assert [c.runtime for c in report.chain] == ["onnxruntime"]
    (row,) = [r for r in report.rows if r.runtime == "openvino"]
    assert "openvino computes input 'ts' in INT32" in row.reason


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    made = model(
        [node("Mul", "x k", "y")],
        [value("x", F, 2, 3), value("k", F)],
        [value("y", F, 2, 3)],
    )
    report, bundle = converted(made, tmp_path)
    assert {r.runtime for r in report.rows if r.chosen} == {"onnxruntime", "openvino"}
    assert Bundle.open(bundle).golden()[0]["k"].ndim == 1  # samples of rank 0
