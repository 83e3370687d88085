"""The bundle that travels."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.bundle import Bundle
from edgeserve.errors import BundleError, UsageError
from edgeserve.packaging.reduce import chosen_chain, write_reduced
from tests.packaging.bundles import two_runtimes


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(two_runtimes(tmp_path))


def test_variants_that_no_candidate_runs_stay_behind(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    chain = chosen_chain(bundle, [], [])
    reduced = write_reduced(bundle, chain, tmp_path / "out", keep_all=False)
    assert {v.id for v in reduced.manifest.variants} == {"onnx-fp32", "tflite-int8"}
    assert reduced.manifest.chain == bundle.manifest.chain
    reduced.verify()
    assert not (tmp_path / "out" / "tflite-fp32").exists()


def test_keep_all_keeps_them(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    chain = chosen_chain(bundle, ["onnxruntime"], [])
    reduced = write_reduced(bundle, chain, tmp_path / "out", keep_all=True)
    assert len(reduced.manifest.variants) == 3
    assert [c.runtime for c in reduced.manifest.chain] == ["onnxruntime"]


def test_runtime_and_variant_narrow_the_chain(bundle: Bundle) -> None:
    assert [c.runtime for c in chosen_chain(bundle, ["litert"], [])] == ["litert"]
    assert [c.variant for c in chosen_chain(bundle, [], ["onnx-fp32"])] == ["onnx-fp32"]
    with pytest.raises(UsageError, match="no candidate of linear is left"):
        chosen_chain(bundle, ["litert"], ["onnx-fp32"])


def test_an_unknown_runtime_suggests_the_nearest(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no runtime 'onnx-runtime'") as raised:
        chosen_chain(bundle, ["onnx-runtime"], [])
    assert raised.value.hint == "did you mean 'onnxruntime'?"


def test_a_tampered_file_does_not_travel(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "onnx-fp32" / "model.onnx").write_bytes(b"something else")
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="not the file the bundle was written with"):
        write_reduced(bundle, chosen_chain(bundle, [], []), tmp_path / "out", keep_all=False)
