"""`edgeserve infer --batch` as users run it: exit codes, kills, interrupts, full disks, servers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.cli.main import main
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle
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
