"""Reports on bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.errors import BundleError
from edgeserve.inspecting import BundleReport, inspect_bundle, inspect_path
from tests.bundles import linear_bundle


def test_parts_add_up_to_the_folder(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path)
    report = inspect_path(bundle)
    assert isinstance(report, BundleReport)
    on_disk = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
    assert report.size_bytes == sum(p.size_bytes for p in report.parts) == on_disk
    assert {p.name for p in report.parts} == {"variant onnx-fp32", "golden samples", "manifest"}
    assert report.verified_files == 3
    assert report.unlisted == ()


def test_files_the_manifest_does_not_name_are_listed(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path)
    (bundle / "onnx-fp32" / "notes.txt").write_text("mine")
    assert inspect_bundle(bundle).unlisted == ("onnx-fp32/notes.txt",)


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path)
    model = bundle / "onnx-fp32" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match="not the file the bundle was written with"):
        inspect_bundle(bundle)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        inspect_path(tmp_path)
