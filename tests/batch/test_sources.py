"""What each kind of source makes of its rows, and what it says of rows and files that do not fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeserve.batch import open_source
from edgeserve.batch.sources import RowSource, lines
from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError, EdgeServeError, InvalidInput, UsageError
from edgeserve.preprocess import ImageReader, load_image
from edgeserve.tensors import Interface, Tensors, TensorSpec

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

VECTOR = Interface(
    (TensorSpec("x", "FP32", ("batch", 3)),), (TensorSpec("y", "FP32", ("batch", 3)),), max_batch=8
)
# An identifier, a text, a sequence of any length: three inputs of three kinds.
MIXED = Interface(
    (
        TensorSpec("id", "INT64", ("batch", 1)),
        TensorSpec("größe", "BYTES", ("batch",)),
        TensorSpec("tokens", "INT32", ("batch", "length")),
    ),
    (TensorSpec("y", "FP32", ("batch", 1)),),
    max_batch=8,
)
UNBATCHED = Interface(
    (TensorSpec("x", "FP64", (2, "n")),), (TensorSpec("y", "FP64", ("rows", 2)),), max_batch=0
)


def decoded(source: RowSource, skip: int = 0, size: int = 2) -> dict[object, Tensors | str]:
    """Every row's inputs by its name, or the error's text."""
    found: dict[object, Tensors | str] = {}
    for portion in source.portions(skip, lambda: size):
        assert 1 <= len(portion.values) <= size
        for name, value in zip(portion.names, portion.values, strict=True):
            try:
                found[name] = source.decode(name, value).inputs
            except (InvalidInput, DataError) as error:
                found[name] = str(error)
    return found


def of_text(tmp_path: Path, name: str, text: str | bytes, interface: Interface) -> RowSource:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_source(path, interface, None)


@pytest.mark.parametrize(
    "text",
    [
        "x_0,x_1,x_2\n1,2,3\n4,5,6.5\n",
        "\ufeffx_0,x_1,x_2\r\n1,2,3\r\n\r\n4,5,6.5\r\n",
        "x_2,label,x_0,x_1\n3,7,1,2\n6.5,7,4,5",
        'label,x\n0,"[1, 2, 3]"\n1,"[4,5,6.5]"\n',
        "sepal,petal,leaf,label\n1,2,3,a\n4,5,6.5,b\n",
    ],
)
def test_columns_of_a_csv_are_inputs(tmp_path: Path, text: str) -> None:
    rows = decoded(of_text(tmp_path, "x.csv", text, VECTOR))
    assert list(rows) == [0, 1]
    np.testing.assert_array_equal(rows[0]["x"], np.float32([[1, 2, 3]]))
    np.testing.assert_array_equal(rows[1]["x"], np.float32([[4, 5, 6.5]]))


def test_three_inputs_of_three_kinds(tmp_path: Path) -> None:
    table = 'tokens,größe,id,note\n"[1,2]","a ""b""\nc",9007199254740993,n\n[7],,2.0,\n'
    lines_ = [
        {"id": 9007199254740993, "größe": 'a "b"\nc', "tokens": [1, 2], "note": "n"},
        {"id": [2], "größe": [""], "tokens": [[7]]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines_)
    parquet.write_table(
        pa.table(
            {
                "größe": ['a "b"\nc', ""],
                "tokens": pa.array([[1, 2], [7]], pa.list_(pa.int16())),
                "id": [9007199254740993, 2],
            }
        ),
        tmp_path / "x.parquet",
    )
    for source in (
        of_text(tmp_path, "x.csv", table, MIXED),
        of_text(tmp_path, "x.jsonl", text, MIXED),
        open_source(tmp_path / "x.parquet", MIXED, None),
    ):
        first, second = decoded(source).values()
        assert first["id"].tolist() == [[9007199254740993]]
        assert first["größe"].tolist() == [b'a "b"\nc']
        assert first["tokens"].tolist() == [[1, 2]]
        assert first["tokens"].dtype == np.int32
        assert (second["größe"].tolist(), second["tokens"].tolist()) == ([b""], [[7]])


def test_a_model_without_an_axis_of_rows_takes_whole_tensors(tmp_path: Path) -> None:
    text = "[[1,2,3],[4,5,6]]\n" + '{"x": [[1],[2]]}\n' + "[1,2]\n"
    rows = list(decoded(of_text(tmp_path, "x.jsonl", text, UNBATCHED)).values())
    assert [rows[0]["x"].shape, rows[1]["x"].shape] == [(2, 3), (2, 1)]
    assert "expected shape [2,n]" in str(rows[2])


def test_bad_rows_are_errors_and_the_next_row_is_read(tmp_path: Path) -> None:
    text = 'x_0,x_1,x_2\n1,2,3\n1,2\n1,cat,3\n1,,3\n"1"\r2,3,4\n7,8,9\n'
    rows = decoded(of_text(tmp_path, "x.csv", text, VECTOR), size=100)
    assert list(rows) == [0, 1, 2, 3, 4, 5]
    assert rows[1] == "the row has 2 cells, the header has 3"
    assert rows[2] == "column 'x_1': expected FP32, got 'cat'"
    assert rows[3] == "column 'x_1': expected FP32, got an empty cell"
    assert str(rows[4]).startswith("the row is not valid CSV: new-line character")
    np.testing.assert_array_equal(rows[5]["x"], np.float32([[7, 8, 9]]))


def test_bad_lines_of_json_are_errors(tmp_path: Path) -> None:
    text = b'[1,2,3]\n{"x": [1,2\n\xff\n{"y": 1}\n[1,2]\n["a",2,3]\n\n[[1,2,3],[4,5,6]]\n[NaN,1,2]'
    rows = list(decoded(of_text(tmp_path, "x.jsonl", text, VECTOR)).values())
    assert str(rows[1]).startswith("the line is not valid JSON")
    assert str(rows[2]).startswith("the line is not valid JSON")
    assert rows[3] == "input 'x' is missing: expected FP32[batch,3]: got y"
    assert rows[4] == "input 'x': expected shape [batch,3], got [1,2]"
    assert rows[5] == "input 'x': expected FP32 values, got a string"
    assert rows[6] == "input 'x': a row is one sample, got 2"
    assert np.isnan(rows[7]["x"][0, 0])


def test_a_line_without_end_is_cut_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 64)
    monkeypatch.setattr(lines, "_BUFFER", 16)
    long = "[" + "1," * 500 + "2]"
    rows = list(
        decoded(of_text(tmp_path, "x.jsonl", f"[1,2,3]\n{long}\n[4,5,6]\n", VECTOR)).values()
    )
    assert "longer than" in str(rows[1])
    assert rows[2]["x"].tolist() == [[4, 5, 6]]
    table = f'x_0,x_1,x_2\n1,2,3\n1,2,"{long}"\n4,5,6\n'
    rows = list(decoded(of_text(tmp_path, "x.csv", table, VECTOR)).values())
    assert "longer than" in str(rows[1])
    assert rows[2]["x"].tolist() == [[4, 5, 6]]


@pytest.mark.parametrize("skip", [0, 1, 3, 4, 6, 7])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "npy", "folder"])
def test_skipped_rows_are_not_read_again(tmp_path: Path, suffix: str, skip: int) -> None:
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        path.write_text("x_0,x_1,x_2\n" + "\n\n".join(",".join(map(str, r)) for r in x))
    elif suffix == "jsonl":
        path.write_text("\n\n".join(json.dumps(r.tolist()) for r in x))
    elif suffix == "parquet":
        parquet.write_table(pa.table({f"x_{i}": x[:, i] for i in range(3)}), path, 3)
    elif suffix == "npy":
        np.save(path, x)
    else:
        path.mkdir()
        for i, row in enumerate(x):
            np.save(path / f"{i}.npy", row)
    rows = decoded(open_source(path, VECTOR, None), skip)
    wanted = [f"{i}.npy" if suffix == "folder" else i for i in range(skip, 7)]
    assert list(rows) == wanted
    for name, row in rows.items():
        np.testing.assert_array_equal(row["x"], x[int(str(name).removesuffix(".npy"))][None])


def test_parquet_lists_texts_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.int8())):
        parquet.write_table(pa.table({"x": pa.array([[1, 2, 3], [4, 5, 6]], kind)}), path)
        rows = decoded(open_source(path, VECTOR, None), size=9)
        assert rows[1]["x"].tolist() == [[4, 5, 6]]
    parquet.write_table(pa.table({"x": [[1.0, 2.0, 3.0], None, [1.0, None, 3.0], [1.0]]}), path)
    rows = decoded(open_source(path, VECTOR, None))
    assert rows[0]["x"].tolist() == [[1, 2, 3]]
    assert rows[1] == "input 'x': the row has a null"
    assert "expected FP32 values, got null" in str(rows[2])
    assert "expected shape" in str(rows[3])


def test_a_folder_of_images_and_tensors(tmp_path: Path) -> None:
    how = Preprocess(height=4, width=4, scale=1 / 255, layout="NCHW")
    interface = Interface(
        (TensorSpec("image", "FP32", ("batch", 3, 4, 4)),),
        (TensorSpec("y", "FP32", ("batch", 1)),),
        max_batch=4,
    )
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    Image.fromarray(np.full((8, 6, 3), 200, np.uint8)).save(folder / "b" / "grüße.png")
    (folder / "a.jpg").write_bytes(b"not an image")
    np.savez(folder / "c.npz", image=np.ones((3, 4, 4), np.float32))
    np.save(folder / "d.npy", np.array([{}], object), allow_pickle=True)
    Image.fromarray(np.full((8, 6, 3), 100, np.uint8)).save(folder / "e.tif")
    (folder / "notes.txt").write_text("")
    source = open_source(folder, interface, ImageReader.of(how, interface))
    rows = decoded(source)
    assert list(rows) == ["a.jpg", "b/grüße.png", "c.npz", "d.npy", "e.tif"]
    assert source.remarks == ("ignored files that are neither images nor tensors: 1",)
    assert rows["a.jpg"] == "a.jpg is not a readable image: its format is not known"
    expected = load_image(folder / "b" / "grüße.png", how)
    np.testing.assert_allclose(rows["b/grüße.png"]["image"][0], expected, atol=1e-6)
    assert rows["c.npz"]["image"].shape == (1, 3, 4, 4)
    assert "pickles could execute anything" in str(rows["d.npy"])
    np.testing.assert_allclose(rows["e.tif"]["image"], 100 / 255, atol=1e-3)
    (folder / "a.jpg").unlink()
    (folder / "e.tif").unlink()
    (folder / "b" / "grüße.png").unlink()
    assert open_source(folder, interface, None).total == 2


def empty(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "make", "kind", "message"),
    [
        ("x.csv", lambda p: p.write_text(""), DataError, "has no header"),
        ("x.csv", lambda p: p.write_text("a,b\n"), DataError, "no column for input 'x'"),
        ("x.csv", lambda p: p.write_text("x_0,x_1\n"), DataError, "2 columns for input 'x'"),
        ("x.parquet", lambda p: p.write_text("PAR1"), DataError, "not a readable Parquet file"),
        ("x.npy", lambda p: p.write_text("PAR1"), DataError, "cannot be read"),
        ("x.txt", lambda p: p.write_text("1"), UsageError, "does not read x.txt"),
        ("x", empty, DataError, "has no images, .npy or .npz"),
        ("y.csv", lambda p: None, DataError, "does not exist"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(
    tmp_path: Path,
    name: str,
    make: Callable[[Path], object],
    kind: type[EdgeServeError],
    message: str,
) -> None:
    make(tmp_path / name)
    with pytest.raises(kind, match=message):
        open_source(tmp_path / name, VECTOR, None)


def test_images_need_a_preprocess(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    (tmp_path / "a.png").write_bytes(image.getvalue())
    with pytest.raises(UsageError, match="preprocessing of images for this model is not known"):
        open_source(tmp_path, VECTOR, None)
