"""Networks that do not look like a classifier of vectors, through whole runs into every kind of file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve.batch import BatchRun, LocalModel, RemoteModel, TensorForm, open_source
from edgeserve.bundle import Bundle
from edgeserve.client import Access, connect
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, Tensors, TensorSpec
from tests.bundles import write_bundle
from tests.serve.background import Background
from tests.serve.protocols.v2.test_texts import texts_bundle

parquet = pytest.importorskip("pyarrow.parquet")

F, I64, F16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16
ONNX_TYPES = {"FP32": F, "INT64": I64, "FP16": F16}


def bundle_of(
    folder: Path, name: str, nodes: list[Any], interface: Interface, golden: Tensors,
    constants: list[Any] | None = None,
) -> Path:  # fmt: skip
    import onnxruntime

    def infos(specs: tuple[TensorSpec, ...]) -> list[Any]:
        return [
            helper.make_tensor_value_info(s.name, ONNX_TYPES[s.dtype], list(s.shape)) for s in specs
        ]

    graph = helper.make_graph(
        nodes, name, infos(interface.inputs), infos(interface.outputs), constants or []
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [s.name for s in interface.outputs]
    outputs = dict(zip(names, session.run(names, golden), strict=True))
    if not interface.max_batch:  # samples are stacked
        golden = {n: a[None] for n, a in golden.items()}
        outputs = {n: np.asarray(a)[None] for n, a in outputs.items()}
    return write_bundle(folder, name, model, interface, golden, outputs)


def interface_of(inputs: dict[str, Any], outputs: dict[str, Any], most: int) -> Interface:
    return Interface(
        tuple(TensorSpec(n, *t) for n, t in inputs.items()),
        tuple(TensorSpec(n, *t) for n, t in outputs.items()),
        most,
    )


def places(folder: Path) -> Path:
    """Where a vector of any length is not zero: as many numbers as there are. No axis of rows."""
    interface = interface_of(
        {"x": ("FP32", ("n",))}, {"places": ("INT64", (1, "found")), "sum": ("FP32", ())}, 0
    )
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
    ]
    return bundle_of(folder, "places", nodes, interface, {"x": np.float32([0, 1, 2])})


def centred(folder: Path, most: int = 8) -> Path:
    """Rows less their mean over the batch, which a manifest wrongly takes for independent."""
    interface = interface_of({"x": ("FP32", ("batch", 2))}, {"y": ("FP32", ("batch", 2))}, most)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Sub", ["x", "d"], ["y"]),
    ]
    return bundle_of(folder, f"centred-{most}", nodes, interface, {"x": np.float32([[1, 2]])})


def looked_up(folder: Path) -> Path:
    """A table by index: an index beyond it fails in the engine. Two inputs, three outputs of several kinds."""
    interface = interface_of(
        {"index": ("INT64", ("batch",)), "größe": ("FP32", ("batch", 1))},
        {"value": ("FP32", ("batch",)), "half": ("FP16", ("batch", 1)), "pair": ("INT64", ("batch", 1, 2))},
        16,
    )  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["value"], axis=0),
        helper.make_node("Cast", ["größe"], ["half"], to=F16),
        helper.make_node("Unsqueeze", ["index", "axes"], ["wide"]),
        helper.make_node("Concat", ["wide", "wide"], ["pair"], axis=2),
    ]
    constants = [
        helper.make_tensor("table", F, [4], [0.1, 0.2, 0.3, 0.4]),
        helper.make_tensor("axes", I64, [2], [1, 2]),
    ]
    golden = {"index": np.int64([0, 3]), "größe": np.float32([[1], [2]])}
    return bundle_of(folder, "looked-up", nodes, interface, golden, constants)


def results(path: Path) -> list[dict[str, Any]]:
    """Rows with Python values; the cells of a CSV as numbers and lists."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{n: value(c) for n, c in row.items()} for row in csv.DictReader(file)]
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def run(model: Any, lines: list[Any], folder: Path, suffix: str) -> list[dict[str, Any]]:
    """Results, and failures as rows with their error."""
    source, output = folder / f"{suffix}-in.jsonl", folder / f"out-{suffix}.{suffix}"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    form = TensorForm(model.interface, (), model.together)
    rows = open_source(source, model.interface, None)
    with BatchRun(source, rows, model, form, output) as batch:
        summary = batch.run()
    found = results(output)
    if summary.errors is not None:
        text = Path(summary.errors).read_text()
        found += [json.loads(line) for line in text.splitlines()]
    return sorted(found, key=lambda row: int(row["row"]))


every_file = pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])


def opened(path: Path) -> LocalModel:
    return LocalModel(Bundle.open(path), None)


@every_file
def test_answers_whose_size_depends_on_the_data(tmp_path: Path, suffix: str) -> None:
    with opened(places(tmp_path)) as model:
        found = run(model, [[0, 1, 0, 2], [0, 0], {"x": [5]}, []], tmp_path, suffix)
    assert [row["places"] for row in found] == [[[1, 3]], [[]], [[0]], [[]]]
    assert [row["sum"] for row in found] == [3, 0, 5, 0]


@pytest.mark.parametrize("most", [1, 8])
def test_rows_that_interact_run_alone(tmp_path: Path, most: int) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2)).round(3)
    with opened(centred(tmp_path, most)) as model:
        assert model.together == 1
        found = run(model, x.tolist(), tmp_path, "jsonl")
    np.testing.assert_allclose([row["y"] for row in found], x, atol=1e-5)


@every_file
def test_a_row_that_the_engine_refuses_is_one_failure(tmp_path: Path, suffix: str) -> None:
    lines = [{"index": i, "größe": [i / 2]} for i in (0, 1, 2, 99, 3, -1)]
    with opened(looked_up(tmp_path)) as model:
        assert model.together == 16
        found = run(model, lines, tmp_path, suffix)
    assert [("error" in row) for row in found] == [False] * 3 + [True] + [False] * 2
    np.testing.assert_allclose(
        [row["value"] for row in found if "value" in row], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6
    )
    half = "half_0" if suffix == "csv" else "half"
    assert found[1][half] in (0.5, [0.5])
    assert found[2]["pair"] == [[2, 2]]
    assert "engine" in found[3]["error"] or "fails" in found[3]["error"]


@every_file
def test_texts(tmp_path: Path, suffix: str) -> None:
    texts = [["größe", 'a "b", c\n'], ["", "{1}"]]
    with opened(texts_bundle(tmp_path)) as model:
        found = run(model, texts, tmp_path, suffix)
    assert [row["y"] for row in found] == texts


@pytest.mark.parametrize("make", [centred, looked_up])
def test_a_server_gives_the_same(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    lines: list[Any] = [[1, 2], [3, 4.5], [-1, 0]] * 9
    if make is looked_up:
        lines = [{"index": i % 5, "größe": [i / 2]} for i in range(30)]
    path = make(tmp_path)
    with opened(path) as model:
        expected = run(model, lines, tmp_path, "jsonl")
    folder = tmp_path / "url"
    folder.mkdir()
    with Background(Settings(bundle=str(path), http_port=0)) as server:
        with connect(server.url) as client:
            info = client.model(path.stem)
        with RemoteModel(server.url, Access(), info, None, 4) as remote:
            found = run(remote, lines, folder, "jsonl")
    good = [row for row in expected if "error" not in row]
    assert [row for row in found if "error" not in row] == good
    assert len(found) == len(expected)
