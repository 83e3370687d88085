"""What an engine keeps of compiled models, when a device is found wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeserve.bundle import Bundle, Candidate, FileEntry
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import decode, encode
from edgeserve.chain import Chain
from edgeserve.errors import CheckFailed
from tests.bundles import LINEAR, linear, linear_model, write_bundle

openvino = pytest.importorskip("openvino")


def compiled_bundle(folder: Path, error: float) -> Path:
    """linear.edge for OpenVINO on the CPU with its cache on; golden outputs that are off by `error`."""
    import onnx

    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    wanted = linear(x) + np.float32(error)
    path = write_bundle(folder, "compiled", linear_model(), LINEAR, {"x": x}, {"y": wanted})
    source = folder / "linear.onnx"
    onnx.save(linear_model(), source)
    (path / "ir").mkdir()
    openvino.save_model(openvino.convert_model(source), path / "ir" / "model.xml", False)
    manifest = decode((path / "manifest.json").read_bytes(), "manifest.json")
    files = tuple(
        FileEntry(f"ir/model.{kind}", file_sha256(file), file.stat().st_size)
        for kind in ("xml", "bin")
        for file in [path / "ir" / f"model.{kind}"]
    )
    variant = msgspec.structs.replace(
        manifest.variants[0], id="ir", format="openvino-ir", main=files[0].path, files=files
    )
    candidate = Candidate("ir", "openvino", "cpu", options={"cache": True})
    manifest = msgspec.structs.replace(manifest, variants=(variant,), chain=(candidate,))
    (path / "manifest.json").write_bytes(encode(manifest))
    shutil.rmtree(path / "onnx-fp32")
    return path


@pytest.mark.parametrize(("error", "kept"), [(0.0, 1), (0.5, 0)])
def test_compiled_models_that_are_wrong_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, kept: int
) -> None:
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    bundle = Bundle.open(compiled_bundle(tmp_path, error))
    if kept:
        Chain(bundle).close()
    else:
        with pytest.raises(CheckFailed):
            Chain(bundle)
    folders = list((tmp_path / "cache" / "compiled").iterdir())
    assert len(folders) == kept
    assert all(list(folder.rglob("*.blob")) for folder in folders)
