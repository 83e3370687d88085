"""What was opened stays what it was, whatever becomes of its files; what is opened later is that, or is refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import FileEntry, VariantFiles
from edgeserve.bundle.files import file_sha256
from edgeserve.errors import BundleError
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.tensors import Array, Interface, TensorSpec
from tests.runtimes.test_litert import SMALL_CNN

_ROWS = 4096
_DATA = Path(__file__).parents[1] / "data"
_TABLE = Interface(
    (TensorSpec("ids", "INT64", ("batch", 8)),), (TensorSpec("y", "FP32", ("batch", 8, 16)),), 8
)


def table_model(seed: int = 0) -> onnx.ModelProto:
    """An embedding: engines read rows of it from where it lies."""
    table = np.random.default_rng(seed).normal(size=(_ROWS, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 16])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_onnx(folder: Path, seed: int) -> Path:
    onnx.save(table_model(seed), folder / "model.onnx")
    return folder / "model.onnx"


def write_beside(folder: Path, seed: int) -> Path:
    """With its weights in a file of their own."""
    path, weights = folder / "model.onnx", folder / "model.onnx.data"
    weights.unlink(missing_ok=True)
    onnx.save(table_model(seed), path, save_as_external_data=True, location=weights.name)
    return path


def write_ir(folder: Path, seed: int) -> Path:
    import openvino

    onnx.save(table_model(seed), folder / "source")
    model = openvino.Core().read_model((folder / "source").read_bytes())
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    (folder / "source").unlink()
    return folder / "model.xml"


def write_tflite(folder: Path, seed: int) -> Path:
    """The other one has other weights: bytes in their middle differ."""
    data = bytearray((_DATA / "small-cnn-fp32.tflite").read_bytes())
    if seed:
        data[len(data) // 2] ^= 1
    (folder / "model.tflite").write_bytes(data)
    return folder / "model.tflite"


KINDS = pytest.mark.parametrize(
    ("name", "write"),
    [
        ("onnxruntime", write_onnx),
        ("onnxruntime", write_beside),
        ("openvino", write_ir),
        ("litert", write_tflite),
    ],
    ids=["onnx", "onnx-beside", "ir", "tflite"],
)


def files_of(name: str, main: Path) -> VariantFiles:
    interface = SMALL_CNN if name == "litert" else _TABLE
    entries = tuple(
        FileEntry(path.name, file_sha256(path), path.stat().st_size)
        for path in sorted(main.parent.iterdir())
    )
    kind = runtime(name).formats[0]
    return VariantFiles(
        "v", main, kind, "fp32", interface, batch=1 if name == "litert" else 0,
        files=entries, root=str(main.parent),
    )  # fmt: skip


def example(interface: Interface, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for spec in interface.inputs:
        shape = (1, *(int(d) for d in spec.shape[1:]))
        numbers = random.integers(0, _ROWS, size=shape)
        found[spec.name] = numbers if spec.dtype == "INT64" else numbers.astype(np.float32) / _ROWS
    return found


@KINDS
@pytest.mark.parametrize("how", ["cut", "overwritten", "removed"])
def test_a_session_goes_on_and_another_is_refused(
    tmp_path: Path, name: str, write: object, how: str
) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    main = write(folder, 0)  # type: ignore[operator]
    files = files_of(name, main)
    session = runtime(name).load(files, "cpu", LoadOptions(threads=1, instances=2))
    requests = [example(files.interface, seed) for seed in range(16)]
    before = [session.run(request) for request in requests]
    write(other, 1)  # type: ignore[operator]
    for path in list(folder.iterdir()):
        if how == "removed":
            path.unlink()
        else:
            with path.open("r+b") as file:  # in place, as cp and rsync --inplace do
                file.truncate(0)
                if how == "overwritten":
                    file.write((other / path.name).read_bytes())
    with ThreadPoolExecutor(4) as pool:  # at once: interpreters are made as calls need them
        after = list(pool.map(session.run, requests))
    for want, got in zip(before, after, strict=True):
        for output in want:
            np.testing.assert_array_equal(want[output], got[output])
    words = "cannot be read" if how == "removed" else "is not the file the bundle was written with"
    with pytest.raises(BundleError, match=words):
        runtime(name).load(files, "cpu", LoadOptions(threads=1))
    session.close()
    shutil.rmtree(folder)
