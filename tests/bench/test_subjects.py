"""What is selected, opened, and skipped with which reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.bench.subjects import (
    SOURCE_INDEX,
    close_all,
    open_all,
    requests_of,
    select,
    source_subject,
)
from edgeserve.bundle import Bundle
from edgeserve.errors import BundleError, UsageError
from tests.bundles import LINEAR, linear, linear_bundle, linear_model, write_bundle


@pytest.mark.parametrize(
    ("filters", "indices"),
    [
        ({}, [0, 1]),
        ({"device": "cpu"}, [1]),
        ({"device": "gpu"}, [0]),
        ({"variant": "onnx-fp32"}, [0, 1]),
        ({"device": "cpu", "variant": "onnx-fp32"}, [1]),
    ],
)
def test_candidates_are_selected_by_device_and_variant(
    bundle: Bundle, filters: dict[str, str], indices: list[int]
) -> None:
    assert [s.index for s in select(bundle, **filters)] == indices  # type: ignore[arg-type]


def test_a_filter_that_matches_nothing_suggests_the_nearest_variant(bundle: Bundle) -> None:
    with pytest.raises(UsageError) as caught:
        select(bundle, variant="onnx-fp23")
    assert caught.value.cause == "variant onnx-fp23"
    assert (caught.value.hint or "").startswith("did you mean 'onnx-fp32'? the chain is onnx")


def test_what_does_not_open_is_skipped_with_the_engine_s_reason(bundle: Bundle) -> None:
    opened, skipped = open_all(bundle, select(bundle))
    close_all(opened)
    assert [o.subject.index for o in opened] == [1]
    assert opened[0].placement.inference_precision == "fp32"
    (gpu,) = skipped
    assert (gpu.stage, gpu.device) == ("open", "gpu")
    assert "CUDAExecutionProvider" in gpu.reason


def test_wrong_numbers_are_skipped_before_anything_is_timed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    wrong = write_bundle(tmp_path, "wrong", linear_model(), LINEAR, {"x": x}, {"y": linear(x) + 1})
    bundle = Bundle.open(wrong)
    opened, (skipped,) = open_all(bundle, select(bundle))
    assert opened == []
    assert skipped.stage == "golden"
    assert "does not reproduce the golden samples" in skipped.reason


def test_a_tampered_variant_is_an_error_not_a_skip(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    (path / "onnx-fp32" / "model.onnx").write_bytes(b"other")
    bundle = Bundle.open(path)
    with pytest.raises(BundleError, match="is not the file the bundle was written with"):
        open_all(bundle, select(bundle))


def test_the_source_is_measured_beside_the_chain(bundle: Bundle, tmp_path: Path) -> None:
    onnx.save(linear_model(), tmp_path / "source.onnx")
    subjects = select(bundle, device="cpu", against=tmp_path / "source.onnx")
    opened, skipped = open_all(bundle, subjects)
    close_all(opened)
    assert [o.subject.index for o in opened] == [1, SOURCE_INDEX]
    assert opened[1].golden_error < 1e-6
    assert not skipped


def test_another_model_than_the_source_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = linear_model()
    model.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.full(3, 2.0, np.float32), "b")
    )
    onnx.save(model, tmp_path / "other.onnx")
    opened, (skipped,) = open_all(bundle, [source_subject(tmp_path / "other.onnx")])
    assert opened == []
    assert skipped.hint == "--against takes the model the bundle was converted from"


def test_a_source_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        source_subject(tmp_path / "no.onnx")


def test_requests_are_the_golden_samples(bundle: Bundle) -> None:
    requests = requests_of(bundle)
    assert len(requests) == bundle.manifest.golden.samples
    assert all(r["x"].shape == (1, 4) for r in requests)
