"""Whole runs on a real bundle: results, failures, and continuing after every kind of stop."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.batch import BatchRun, BatchSummary, LocalModel, TensorForm, errors_path, open_source
from edgeserve.batch import job as jobs
from edgeserve.errors import (
    EdgeServeError,
    InferenceFailed,
    ModelUnavailable,
    OutputExists,
    UsageError,
)
from edgeserve.tensors import Tensors
from tests.bundles import linear

parquet = pytest.importorskip("pyarrow.parquet")


def begin(model: Any, source: Path, output: Path, **options: bool) -> BatchRun:
    rows = open_source(source, model.interface, None)
    return BatchRun(
        source, rows, model, TensorForm(model.interface, (), model.together), output, **options
    )


def run(model: Any, source: Path, output: Path, **options: bool) -> BatchSummary:
    with begin(model, source, output, **options) as batch:
        return batch.run()


def read(path: Path) -> dict[int, list[float]]:
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {r["row"]: r["y"] for r in rows}
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        return {int(r["row"]): [float(r[f"y_{i}"]) for i in range(3)] for r in found}
    table = parquet.read_table(path)
    assert len(table) == len(set(table["row"].to_pylist()))
    return dict(zip(table["row"].to_pylist(), table["y"].to_pylist(), strict=True))


def write(path: Path, x: np.ndarray, bad: Sequence[int] = ()) -> Path:
    lines = [json.dumps(row.tolist()) for row in x]
    for i in bad:
        lines[i] = f'{{"x": "row {i}"}}'
    path.write_text("\n".join(lines))
    return path


class Stopping:
    """A model that cannot answer any more after some calls, or fails on some rows."""

    def __init__(self, inner: LocalModel, calls_left: int, hates: float | None = None) -> None:
        self.inner = inner
        self.left = calls_left
        self.hates = hates
        self.interface, self.preprocess = inner.interface, None
        self.calls, self.identity = 2, inner.identity
        self.together = 16

    def run(self, requests: Sequence[Tensors]) -> Tensors:
        self.left -= 1
        if self.left < 0:
            raise ModelUnavailable("no device serves")
        if self.hates is not None and any(
            (r["x"] == np.float32(self.hates)).any() for r in requests
        ):
            raise InferenceFailed("the engine failed", cause="it hates this number")
        return self.inner.run(requests)

    def answered_by(self) -> str:
        return "linear"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_results_are_in_order_and_bad_rows_in_the_errors_file(
    tmp_path: Path, model: LocalModel, x: np.ndarray, suffix: str
) -> None:
    source, output = write(tmp_path / "x.jsonl", x, (0, 7, 299)), tmp_path / f"new/out.{suffix}"
    summary = run(model, source, output)
    assert (summary.rows, summary.failed, summary.resumed) == (300, 3, 0)
    rows = read(output)
    good = [i for i in range(300) if i not in (0, 7, 299)]
    assert list(rows) == good
    np.testing.assert_allclose(list(rows.values()), linear(x[good]), rtol=1e-4, atol=1e-6)
    assert summary.errors == str(errors_path(output))
    failures = [json.loads(line) for line in errors_path(output).read_text().splitlines()]
    assert [f["row"] for f in failures] == [0, 7, 299]
    assert failures[1]["error"] == "input 'x': expected FP32 values, got a string"
    assert {p.name for p in output.parent.iterdir()} == {output.name, "out.errors.jsonl"}


def test_a_row_that_fails_in_the_engine_takes_no_other_with_it(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    summary = run(Stopping(model, 10**9, float(x[5, 0])), source, output)
    assert summary.failed == 1
    assert list(read(output)) == [i for i in range(300) if i != 5]
    (failure,) = [json.loads(line) for line in errors_path(output).read_text().splitlines()]
    assert failure == {
        "row": 5, "error": "the engine failed", "cause": "it hates this number",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, model: LocalModel, x: np.ndarray, suffix: str
) -> None:
    source, output = write(tmp_path / "x.jsonl", x, (3, 250)), tmp_path / f"out.{suffix}"
    stops, resumed = 0, []
    while True:
        try:
            with begin(Stopping(model, 12), source, output, resume=True) as batch:
                resumed.append(batch.resumed)
                summary = batch.run()
            break
        except ModelUnavailable:
            stops += 1
            # What was written after the last commit, as a kill leaves it.
            for path in (output, errors_path(output)):
                if path.suffix != ".parquet" or path.exists():
                    with path.open("ab") as file:
                        file.write(b'{"row": 299, "y": [0')
        assert stops < 50
    assert stops > 1
    assert resumed == sorted(resumed)
    assert (summary.rows, summary.failed) == (300, 2)
    rows = read(output)
    assert list(rows) == [i for i in range(300) if i not in (3, 250)]
    lines = errors_path(output).read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [3, 250]
    good = [i for i in range(300) if i not in (3, 250)]
    np.testing.assert_allclose(list(rows.values()), linear(x[good]), rtol=1e-4, atol=1e-6)
    leftovers = {p.name for p in tmp_path.iterdir()} - {"x.jsonl"}
    assert leftovers == {output.name, "out.errors.jsonl"}


def stopped(model: LocalModel, source: Path, output: Path) -> None:
    with pytest.raises(ModelUnavailable):
        run(Stopping(model, 8), source, output)


def test_an_output_is_never_replaced_silently(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    run(model, source, output)
    before = output.read_bytes()
    for resume in (False, True):
        with pytest.raises(OutputExists, match="exists"):
            begin(model, source, output, resume=resume)
    assert output.read_bytes() == before
    with pytest.raises(UsageError, match="is the source"):
        begin(model, output, output, force=True)
    write(source, x[:5])
    assert run(model, source, output, force=True).rows == 5
    assert len(read(output)) == 5


def test_an_incomplete_output_is_continued_only_when_asked(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    stopped(model, source, output)
    with pytest.raises(OutputExists, match="is incomplete") as raised:
        begin(model, source, output)
    assert "--resume" in str(raised.value.hint)
    assert run(model, source, output, force=True).resumed == 0


def test_a_changed_source_model_or_form_is_refused(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    stopped(model, source, output)
    text = source.read_text()
    source.write_text(text.replace("1", "2", 1))
    with pytest.raises(UsageError, match="has changed") as raised:
        begin(model, source, output, resume=True)
    assert raised.value.cause == "its content is different"
    source.write_text(text + "\n[1,2,3,4]")
    with pytest.raises(UsageError, match="has changed"):
        begin(model, source, output, resume=True)
    source.write_text(text)
    other = Stopping(model, 99)
    other.identity = "bundle of another"
    with pytest.raises(UsageError, match="another model"):
        begin(other, source, output, resume=True)
    assert run(model, source, output, resume=True).rows == 300


def test_two_runs_do_not_write_one_output(tmp_path: Path, model: LocalModel, x: np.ndarray) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    with begin(model, source, output), pytest.raises(UsageError, match="another process"):
        begin(model, source, output, resume=True)


def test_a_write_that_fails_leaves_what_can_be_continued(
    tmp_path: Path, model: LocalModel, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written portion is not counted as done."""
    monkeypatch.setattr(jobs, "_COMMIT_S", 0.0)
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    with begin(model, source, output) as batch:
        whole = batch._sink.write
        left = [1]

        def half(encoded: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                whole(encoded[: len(encoded) // 2])
                raise EdgeServeError("no space left")
            whole(encoded)

        monkeypatch.setattr(batch._sink, "write", half)
        with pytest.raises(EdgeServeError, match="no space left"):
            batch.run()
        done = batch.progress.rows
    assert done < 300
    assert run(model, source, output, resume=True).resumed == done
    assert list(read(output)) == list(range(300))


def test_no_rows_give_an_empty_result(tmp_path: Path, model: LocalModel) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("\n")
    for suffix in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"out.{suffix}"
        assert run(model, source, output).rows == 0
        assert read(output) == {}


def test_force_does_not_touch_what_another_run_writes(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    with begin(model, source, output) as batch:
        with pytest.raises(UsageError, match="another process"):
            begin(model, source, output, force=True)
        batch.run()
    assert list(read(output)) == list(range(300))


def test_a_kill_before_the_first_row_leaves_nothing_in_the_way(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    source, output = write(tmp_path / "x.jsonl", x), tmp_path / "out.jsonl"
    errors_path(output).touch()
    assert run(model, source, output).rows == 300


def test_rows_that_fail_only_together_share_fewer_calls(
    tmp_path: Path, model: LocalModel, x: np.ndarray
) -> None:
    class Narrow(Stopping):
        """As a server that refuses large bodies."""

        refused = 0

        def run(self, requests: Sequence[Tensors]) -> Tensors:
            if len(requests) > 3:
                self.refused += 1
                raise InferenceFailed("too large")
            return super().run(requests)

    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, np.resize(x, (30000, 4)))
    narrow = Narrow(model, 10**9)
    summary = run(narrow, source, output)
    assert (summary.failed, summary.rows_per_call) == (0, 1)
    assert 0 < narrow.refused < 10
    assert list(read(output)) == list(range(30000))


def test_names_and_texts_that_are_not_utf_8(tmp_path: Path, model: LocalModel) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    try:
        (folder / "b\udcff.npy").write_bytes(b"no array")
        np.save(folder / "a\udcfe.npy", np.zeros(4, np.float32))
        (folder / "c.npz").write_bytes(b"PK no archive")
    except OSError:
        pytest.skip("this file system has no such names")
    output = tmp_path / "out.jsonl"
    assert run(model, folder, output).failed == 2
    assert json.loads(output.read_text())["file"] == "a\\xfe.npy"
    failures = [json.loads(line) for line in errors_path(output).read_text().splitlines()]
    assert [f["file"] for f in failures] == ["b\\xff.npy", "c.npz"]
    source, other = tmp_path / "x.csv", tmp_path / "out.csv"
    source.write_bytes(b"x_0,x_1,x_2,x_3,\xff\n1,2,\xff,4,5\n1,2,3,4,5\n")
    assert run(model, source, other, force=True).failed == 1
    (failure,) = (tmp_path / "out.errors.jsonl").read_text().splitlines()
    assert json.loads(failure)["error"] == "column 'x_2': expected FP32, got '\\udcff'"
