"""Opening bundles: digests, links, and folders that are no bundles."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import Bundle
from edgeserve.bundle.files import load_npz
from edgeserve.errors import BundleError
from tests.bundles import linear_bundle


def test_a_bundle_gives_its_variant_and_golden_samples(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    bundle.verify()
    assert bundle.variant_files("onnx-fp32").path.is_file()
    inputs, outputs = bundle.golden()
    assert inputs["x"].shape == (4, 4)
    assert outputs["y"].shape == (4, 3)


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    model = path / "onnx-fp32" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match="not the file the bundle was written with") as caught:
        Bundle.open(path).variant_files("onnx-fp32")
    assert "model.onnx" in caught.value.message
    assert "expected sha256" in (caught.value.cause or "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    (path / "golden-inputs.npz").unlink()
    with pytest.raises(BundleError, match=r"golden-inputs\.npz"):
        Bundle.open(path).verify()


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    model = path / "onnx-fp32" / "model.onnx"
    outside = tmp_path / "outside.onnx"
    model.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(path).variant_files("onnx-fp32")


@pytest.mark.parametrize("make", ["absent", "file", "folder"])
def test_what_is_no_bundle_says_so_and_what_to_do(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.edge"
    if make == "file":
        path.write_text("hello")
    elif make == "folder":
        path.mkdir()
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert "x.edge" in caught.value.message
    assert "convert" in (caught.value.hint or "")


def test_an_unknown_variant_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(linear_bundle(tmp_path)).variant_files("tflite-int8")
    assert caught.value.hint == "it has onnx-fp32"


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    file = tmp_path / "evil.npz"
    np.savez(file, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError):
        load_npz(file)
    (tmp_path / "raw.npz").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(BundleError):
        load_npz(tmp_path / "raw.npz")


def test_size_counts_every_file(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    on_disk = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert Bundle.open(path).size_bytes == on_disk
    assert json.loads((path / "manifest.json").read_text())["name"] == "linear"


def test_links_are_followed_once(tmp_path: Path) -> None:
    """What is opened later belongs to the version that was opened, wherever the link leads by then."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        linear_bundle(tmp_path / name)
    link = tmp_path / "link"
    link.symlink_to("one")
    bundle = Bundle.open(link / "linear.edge")
    link.unlink()
    link.symlink_to("two")
    (tmp_path / "two" / "linear.edge" / "onnx-fp32" / "model.onnx").write_bytes(b"")
    files = bundle.sealed_files("onnx-fp32")
    assert len(files.content()) == files.files[0].size_bytes
    assert bundle.path == link / "linear.edge"


def test_a_file_that_changes_after_it_was_verified_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    path = bundle.variant_files("onnx-fp32").path
    golden = bundle.golden()
    for file in (path, bundle.root / "golden-inputs.npz", bundle.root / "manifest.json"):
        file.write_bytes(b"")
    with pytest.raises(BundleError, match="is not the file the bundle was written with"):
        bundle.variant_files("onnx-fp32")
    assert all(np.array_equal(a, golden[0][n]) for n, a in bundle.golden()[0].items())
