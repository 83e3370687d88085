"""`edgeserve infer --batch` as users run it: exit codes, kills, interrupts, full disks, servers."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Classification, Preprocess, Task
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import FileEntry, decode, encode
from edgeserve.cli.main import main
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle, write_bundle
from tests.networks import SMALL_CNN, images, small_cnn
from tests.serve.background import Background

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "edgeserve", "infer"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["infer", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(linear_bundle(tmp_path_factory.mktemp("infer-batch")))


@pytest.fixture(scope="module")
def url(bundle: str) -> Iterator[str]:
    with Background(Settings(bundle=bundle, http_port=0)) as server:
        yield server.url


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)


def table(path: Path, x: np.ndarray) -> Path:
    lines = ["x_0,x_1,x_2,x_3", *(",".join(map(repr, row)) for row in x.tolist())]
    path.write_text("\n".join(lines) + "\n")
    return path


def results(path: Path) -> np.ndarray:
    """The outputs, after a check that every row is there once, in order."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["row"] for row in found] == list(range(len(found)))
    return np.array([row["y"] for row in found], np.float32)


def test_a_table_becomes_results(run: Run, bundle: str, tmp_path: Path) -> None:
    x = rows(50)
    source, output = table(tmp_path / "x.csv", x), tmp_path / "out.jsonl"
    code, out, err = run(bundle, "--batch", str(source), "-o", str(output))
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == f"wrote {output}: 50 rows"
    assert "linear on cpu, onnxruntime, onnx-fp32: 50 rows in " in err
    np.testing.assert_allclose(results(output), linear(x), rtol=1e-4, atol=1e-6)


def test_a_server_answers_as_the_bundle_does(
    run: Run, bundle: str, url: str, tmp_path: Path
) -> None:
    x = rows(200)
    source, output = table(tmp_path / "x.csv", x), tmp_path / "out.jsonl"
    code, out, _ = run(
        url, "--batch", str(source), "-o", str(output), "--json", "--connections", "3"
    )
    assert code == 0
    summary = json.loads(out)
    assert (summary["rows"], summary["failed"], summary["errors"]) == (200, 0, None)
    assert summary["answered_by"] == "linear version 1 on cpu, onnxruntime, onnx-fp32"
    np.testing.assert_allclose(results(output), linear(x), rtol=1e-4, atol=1e-6)


def test_failed_rows_are_counted_in_the_last_line_and_the_exit_code(
    run: Run, bundle: str, url: str, tmp_path: Path
) -> None:
    source, output = tmp_path / "x.jsonl", tmp_path / "out.csv"
    source.write_text("[1,2,3,4]\n[1,2,3]\n{}\n[0,0,0,0]\n")
    for where in (bundle, url):
        code, _, err = run(where, "--batch", str(source), "-o", str(output), "--force")
        assert code == 1
        errors = tmp_path / "out.errors.jsonl"
        assert err.splitlines()[-1] == f"wrote {output}: 2 rows; 2 failed: {errors}"
        assert output.read_text().splitlines()[0] == "row,y_0,y_1,y_2"
        assert [json.loads(line)["row"] for line in errors.read_text().splitlines()] == [1, 2]
    code, _, err = run(bundle, "--batch", str(source), "-o", str(output), "--resume")
    assert (code, err) == (1, f"{output} is complete: nothing to resume\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "x.csv"], "--batch needs -o FILE"),
        (["--batch", "x.csv", "-o", "out.npz"], "has no known format"),
        (["a.npz", "--batch", "x.csv", "-o", "out.csv"], "leave out a.npz"),
        (["a.npz", "--resume"], "--resume needs --batch"),
        (["--batch", "x.csv", "-o", "out.csv", "--connections", "2"], "needs a URL"),
        (["--batch", "none.csv", "-o", "out.csv"], "none.csv does not exist"),
        (["--batch", "x.csv", "-o", "out.csv", "--output", "z"], "unknown output 'z'"),
        ([], "missing argument"),
    ],
)
def test_wrong_usage_says_what_to_do(
    run: Run,
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "x.csv", rows(2))
    code, _, err = run(bundle, *arguments)
    assert code == 2
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def started(bundle: str, source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """A run of its own, some of whose rows are committed."""
    command = [*COMMAND, bundle, "--batch", str(source), "-o", str(output), *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while process.poll() is None and done_rows(output) == 0:
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def done_rows(output: Path) -> int:
    try:
        found = json.loads(output.with_name(f"{output.name}.progress.json").read_bytes())
    except FileNotFoundError:
        return 0
    return int(found["rows"])


def test_a_run_killed_at_once_continues(run: Run, bundle: str, tmp_path: Path) -> None:
    x = np.resize(rows(500), (100_000, 4))
    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, x)
    process = started(bundle, source, output)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert 0 < done_rows(output) < len(x)
    code, _, err = run(bundle, "--batch", str(source), "-o", str(output), "--resume")
    assert code == 0
    assert "resuming after " in err
    np.testing.assert_allclose(results(output), linear(x), rtol=1e-4, atol=1e-6)
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy", "out.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_run_killed_again_and_again_loses_nothing(
    run: Run, bundle: str, tmp_path: Path, suffix: str
) -> None:
    """Kills at random moments, from before the first row to the joining of parts."""
    pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    x = np.resize(rows(500), (300_000, 4))
    source, output = table(tmp_path / "x.csv", x), tmp_path / f"out.{suffix}"
    with source.open("a") as file:
        file.write("1,2,3,bad\n")
    command = [*COMMAND, bundle, "--batch", str(source), "-o", str(output), "--resume"]
    random, kills = np.random.default_rng(0), 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            process.wait(0.8 + random.exponential(1.5))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills >= 2
    assert process.returncode == 1
    if suffix == "jsonl":
        found = pyarrow.json.read_json(output)
    elif suffix == "csv":
        found = pyarrow.csv.read_csv(output)
    else:
        found = pyarrow.parquet.read_table(output)
    np.testing.assert_array_equal(found["row"].to_numpy(), np.arange(len(x)))
    values = (
        np.stack([found[f"y_{i}"].to_numpy() for i in range(3)], 1)
        if suffix == "csv"
        else found["y"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    )
    np.testing.assert_allclose(values, linear(x), rtol=1e-4, atol=1e-6)
    (failure,) = (tmp_path / "out.errors.jsonl").read_text().splitlines()
    assert json.loads(failure)["row"] == len(x)


def test_an_interrupt_ends_with_130_and_can_be_continued(
    run: Run, bundle: str, tmp_path: Path
) -> None:
    x = np.resize(rows(500), (100_000, 4))
    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, x)
    process = started(bundle, source, output)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    done = done_rows(output)
    assert f"stopped after {done:,} rows: add --resume to continue" in err
    code, _, _ = run(bundle, "--batch", str(source), "-o", str(output), "--resume")
    assert code == 0
    assert len(results(output)) == len(x)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_full_disk_is_named_and_the_run_can_be_continued(
    run: Run, bundle: str, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk."""
    x = np.resize(rows(500), (20_000, 4))
    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, x)
    done = subprocess.run(
        [*COMMAND, bundle, "--batch", str(source), "-o", str(output)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 3
    assert f"error: cannot write {output}" in done.stderr
    assert "hint: free some space, then add --resume to continue" in done.stderr
    code, _, _ = run(bundle, "--batch", str(source), "-o", str(output), "--resume")
    assert code == 0
    np.testing.assert_allclose(results(output), linear(x), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows(bundle: str, tmp_path: Path, suffix: str) -> None:
    # Of the program alone: what getrusage tells counts the process that started it.
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgeserve.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(Path('/proc/self/status').read_text())\n"
    )
    peaks = []
    for count in (50_000, 1_000_000):
        source = table(tmp_path / f"{count}.csv", np.resize(rows(500), (count, 4)))
        output = tmp_path / f"{count}.{suffix}"
        done = subprocess.run(
            [sys.executable, "-c", code, "infer", bundle, "--batch", str(source), "-o", str(output)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peaks.append(int(done.stdout.split("VmHWM:")[1].split()[0]) / 1024)
    print(peaks)
    assert peaks[1] < peaks[0] + 64


HOW = Preprocess(height=32, width=32, scale=1 / 255, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cnn.edge, which classifies images and has labels, and photos/ with one that is broken."""
    import onnxruntime

    folder = tmp_path_factory.mktemp("photographs")
    model, golden = small_cnn(), images(2)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = dict(zip(("logits", "features"), session.run(None, {"image": golden}), strict=True))
    cnn = write_bundle(folder, "cnn", model, SMALL_CNN, {"image": golden}, outputs)
    labels = cnn / "labels.txt"
    labels.write_text("".join(f"Klasse {i}, größer\n" for i in range(10)))
    entry = FileEntry("labels.txt", file_sha256(labels), labels.stat().st_size)
    manifest = decode((cnn / "manifest.json").read_bytes(), "manifest")
    task = Task("classification", HOW, entry, Classification("logits", "softmax", top_k=2))
    (cnn / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, task=task)))
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(20):
        pixels = random.integers(0, 256, (40 + i, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i:02}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    return folder


@pytest.mark.parametrize("where", ["bundle", "url"])
def test_photographs_become_labels(run: Run, photographs: Path, tmp_path: Path, where: str) -> None:
    cnn, photos = str(photographs / "cnn.edge"), photographs / "photos"
    _, out, _ = run(cnn, *map(str, sorted(photos.glob("*.png"))), "--json")
    expected = [answer["classes"] for answer in json.loads(out)["answers"]]
    with contextlib.ExitStack() as stack:
        target = cnn
        if where == "url":
            settings = Settings(bundle=cnn, http_port=0)
            target = stack.enter_context(Background(settings)).url
        for suffix in ("jsonl", "csv", "parquet"):
            output = tmp_path / f"out.{suffix}"
            code, _, err = run(
                target, "--batch", str(photos), "-o", str(output), "--as", "labels", "--force"
            )
            assert (code, "1 failed" in err) == (1, True)
        code, _, _ = run(
            target, "--batch", str(photos), "-o", str(tmp_path / "top.csv"), "--as", "labels",
            "--top", "1",
        )  # fmt: skip
        assert code == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [f"{i:02}.png" for i in range(20)]
    for line, classes in zip(lines, expected, strict=True):
        assert [c["label"] for c in line["classes"]] == [c["label"] for c in classes]
        scores = [[c["score"] for c in found] for found in (line["classes"], classes)]
        np.testing.assert_allclose(*scores, rtol=1e-3)
    (failure,) = (tmp_path / "out.errors.jsonl").read_text().splitlines()
    assert json.loads(failure)["file"] == "broken.jpg"
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "file", "label_1", "score_1", "index_1", "label_2", "score_2", "index_2",
    ]  # fmt: skip
    assert [row["label_2"] for row in table] == [line["classes"][1]["label"] for line in lines]
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows == lines
    header = (tmp_path / "top.csv").read_text("utf-8").splitlines()[0]
    assert header == "file,label,score,index"


def test_labels_need_a_postprocess(run: Run, bundle: str, tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv", rows(2))
    code, _, err = run(
        bundle, "--batch", str(source), "-o", str(tmp_path / "y.csv"), "--as", "labels"
    )
    assert code == 2
    assert "the model has neither labels nor a postprocess" in err
