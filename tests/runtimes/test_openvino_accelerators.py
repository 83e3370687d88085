"""What of OpenVINO concerns GPUs and NPUs: placement with operations left on the CPU, the cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

import onnx
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes.openvino_cache import cache_folder, cache_root
from edgeserve.runtimes.openvino_placement import Layer, macs_of, placement_of
from edgeserve.runtimes.probing import probe_model
from tests.networks import SMALL_CNN, attention, images, small_cnn
from tests.runtimes.test_onnx_placement import SMALL_CNN as WORK

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


@pytest.fixture
def files(tmp_path: Path) -> VariantFiles:
    onnx.save(small_cnn(), tmp_path / "m.onnx")
    openvino.save_model(
        openvino.convert_model(tmp_path / "m.onnx"), tmp_path / "m.xml", compress_to_fp16=False
    )
    return VariantFiles("m", tmp_path / "m.xml", "openvino-ir", "fp32", SMALL_CNN)


def layer(kind: str, implementation: str, *originals: str, precision: str = "f16") -> Layer:
    return Layer(kind, precision, implementation, originals)


def test_what_the_gpu_plug_in_has_computed_on_the_cpu_shows_up() -> None:
    layers = [
        layer("convolution", "onednn", "a"),
        layer("convolution", "ocl", "b"),
        layer("detection_output", "cpu_impl", "boxes"),
        layer("reorder", "ocl"),
    ]
    found = placement_of(layers, "gpu.1", "f16", {"a": 600, "b": 400})
    assert found.shares == {"gpu": 0.75, "cpu": 0.25}
    assert found.mac_shares == {"gpu": 1.0}
    assert found.describe() == "100 % of MACs on gpu, fp16; 1 op on cpu: detection_output"


def test_on_a_cpu_nothing_is_left_on_the_cpu() -> None:
    layers = [layer("Convolution", "cpu_jit_avx512", "a", precision="i8")]
    found = placement_of(layers, "cpu", "bf16", {"a": 5})
    assert (found.shares, found.mac_shares, found.left_on_cpu) == ({"cpu": 1.0}, {"cpu": 1.0}, {})
    assert (found.inference_precision, found.int8_compute_ops) == ("int8+bf16", 1)


def test_an_npu_that_tells_nothing_runs_all_or_nothing() -> None:
    found = placement_of([], "npu", "f16", {"a": 5})
    assert found.describe() == "100 % of MACs on npu, fp16"


def test_the_work_of_a_real_model(files: VariantFiles, tmp_path: Path) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(static_shapes=True))
    assert session.placement().mac_shares == {"cpu": 1.0}
    assert session.placement().compute_ops == len(WORK)
    session.close()
    network = openvino.Core().read_model(files.path)
    assert sum(macs_of(network).values()) == sum(WORK.values())
    onnx.save(attention(16, 4), tmp_path / "attention.onnx")
    network = openvino.convert_model(tmp_path / "attention.onnx")
    # Four projections, and twice the products of queries with keys and values.
    assert sum(macs_of(network).values()) == 4 * 4 * 16 * 16 + 2 * 4 * 4 * 16


def test_a_compiled_model_is_kept_and_found_again(
    files: VariantFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    options = LoadOptions(options={"cache": True}, static_shapes=True)
    expected = None
    for _ in range(2):
        session = runtime("openvino").load(files, "cpu", options)
        got = session.run({"image": images(1)})
        session.close()
        expected = expected or got
        assert (got["logits"] == expected["logits"]).all()
        blobs = list((tmp_path / "cache").rglob("*.blob"))
        assert len(blobs) == 1
    assert blobs[0].parent.name.startswith("m-cpu-")


@pytest.mark.parametrize(
    ("device", "options", "kept"),
    [
        ("GPU", {}, True),
        ("NPU", {}, True),
        ("CPU", {}, False),
        ("CPU", {"cache": True}, True),
        ("GPU", {"cache": False}, False),
        ("GPU", {"CACHE_DIR": "/elsewhere"}, False),
    ],
)
def test_what_is_cached(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    options: dict[str, str | bool],
    kept: bool,
) -> None:
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path))
    model = probe_model("openvino-ir")
    assert model is not None
    folder = cache_folder(model, device, LoadOptions(options=dict(options)))
    assert (folder is not None) is kept
    assert folder is None or folder.is_dir()


def test_each_file_has_a_folder_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: VariantFiles
) -> None:
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    first = cache_folder(files, "GPU", LoadOptions())
    assert first is not None
    assert cache_folder(files, "GPU", LoadOptions()) == first
    assert cache_folder(files, "NPU", LoadOptions()) != first
    files.path.write_bytes(files.path.read_bytes() + b"\n")
    second = cache_folder(files, "GPU", LoadOptions())
    assert second is not None
    assert second != first
    long_ago = time.time() - 100 * 86400
    os.utime(first, (long_ago, long_ago))
    cache_folder(files, "GPU", LoadOptions())
    assert not first.exists()
    assert second.is_dir()


def test_without_a_place_to_write_it_is_compiled_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: VariantFiles
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "file"))
    assert cache_root() == tmp_path / "file" / "compiled"
    assert cache_folder(files, "GPU", LoadOptions()) is None
