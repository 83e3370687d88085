"""A bundle as one file: the same bundle, opened without being unpacked whole."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.bundle.packing import pack
from edgeserve.errors import BundleError, OutputExists, WriteFailed
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle
from tests.serve.background import Background


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    file = tmp_path / "one.edge"
    pack(Bundle.open(linear_bundle(tmp_path)), file)
    return file


def rewritten(archive: Path, change: dict[str, bytes | None]) -> Path:
    """The archive with members replaced (None: left out)."""
    other = archive.with_name("changed.edge")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = change.get(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return other


def test_it_computes_what_the_folder_does(archive: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with edgeserve.load(archive) as model:
        np.testing.assert_allclose(model.run({"x": x})["y"], linear(x), rtol=1e-5)


def test_it_is_served(archive: Path) -> None:
    with Background(Settings(bundle=str(archive), http_port=0)) as server:
        assert server.started.models[0].name == "linear"


def test_nothing_is_unpacked_to_serve_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with edgeserve.load(archive) as model:
        model.run({"x": np.ones((1, 4), np.float32)})
        assert list(scratch.iterdir()) == []


def test_only_what_must_be_a_file_is_unpacked(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    bundle = Bundle.open(archive)
    assert bundle.variant_files("onnx-fp32").path.is_file()
    (root,) = scratch.iterdir()
    assert {p.name for p in root.iterdir()} == {".lock", "onnx-fp32"}
    del bundle
    assert not root.exists()


def test_what_a_killed_process_unpacked_is_removed_by_the_next(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    code = (
        "import os, signal, sys\nfrom edgeserve.bundle import Bundle\n"
        "b = Bundle.open(sys.argv[1]); b.verify(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(3):
        environment = {**os.environ, "TMPDIR": str(scratch)}
        subprocess.run([sys.executable, "-c", code, str(archive)], env=environment)
    assert len(list(scratch.iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    living = [Bundle.open(archive) for _ in range(2)]
    for bundle in living:
        bundle.verify()
    assert len(list(scratch.iterdir())) == 2


def test_a_folder_that_has_no_room_is_named(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bundle = Bundle.open(archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(WriteFailed, match="cannot be unpacked in TMPDIR") as caught:
            bundle.verify()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"File too large: it needs \d+ bytes; \d+ bytes are free", str(caught.value))
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(WriteFailed, match="cannot unpack anything in TMPDIR") as caught:
        Bundle.open(archive).verify()
    assert "set TMPDIR" in str(caught.value.hint)


def test_the_manifest_comes_first_and_nothing_is_compressed(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist()[0] == "manifest.json"
        assert {i.compress_type for i in opened.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_bundle_gives_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    pack(Bundle.open(tmp_path / "linear.edge"), tmp_path / "two.edge")
    assert (tmp_path / "two.edge").read_bytes() == archive.read_bytes()


def test_sizes_and_files_are_those_of_the_folder(archive: Path, tmp_path: Path) -> None:
    folder, file = Bundle.open(tmp_path / "linear.edge"), Bundle.open(archive)
    assert file.size_bytes == folder.size_bytes
    assert file.present() == folder.present()
    file.verify()


@pytest.mark.parametrize("tail", [b"", b"more than the manifest says" * 100])
def test_a_member_that_was_changed_is_refused(archive: Path, tail: bytes) -> None:
    with zipfile.ZipFile(archive) as opened:
        data = bytearray(opened.read("onnx-fp32/model.onnx"))
    data[len(data) // 2] ^= 1
    other = rewritten(archive, {"onnx-fp32/model.onnx": bytes(data) + tail})
    with pytest.raises(BundleError, match="is not the file the bundle was written with"):
        Bundle.open(other).variant_files("onnx-fp32")


def test_a_missing_member_is_named(archive: Path) -> None:
    other = rewritten(archive, {"golden-inputs.npz": None})
    with pytest.raises(BundleError, match=r"does not hold golden-inputs\.npz"):
        Bundle.open(other).golden()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 40])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.edge").write_bytes(content)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "x.edge")


def test_an_archive_without_manifest_is_refused(archive: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(rewritten(archive, {"manifest.json": None}))


def test_a_cut_archive_is_refused(archive: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(archive)


def test_an_existing_file_needs_force_and_a_folder_is_never_replaced(
    archive: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tmp_path / "linear.edge")
    with pytest.raises(OutputExists):
        pack(bundle, archive)
    pack(bundle, archive, force=True)
    with pytest.raises(OutputExists):
        pack(bundle, tmp_path / "linear.edge", force=True)


def test_a_full_disk_leaves_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeserve.bundle.packing.shutil.copyfileobj", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteFailed, match="cannot write"):
        pack(Bundle.open(tmp_path / "linear.edge"), tmp_path / "out" / "full.edge")
    assert list((tmp_path / "out").iterdir()) == []
