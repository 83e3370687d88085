"""NVIDIA's perf_analyzer on HTTP and gRPC: it asks for configuration and statistics, sends load with answers
to compare, and checks that our counters agree with its own."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import linear_bundle, linear_model
from tests.conformance.environments import perf_analyzer
from tests.conformance.process import Served, serve
from tests.conformance.test_examples import sums_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight requests with the answers they must have, to the last bit: perf_analyzer compares bytes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(linear_model().SerializeToString())
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    document = {
        "data": [{"x": row.tolist()} for row in x],
        "validation_data": [{"y": session.run(None, {"x": row[None]})[0][0].tolist()} for row in x],
    }
    file = tmp_path_factory.mktemp("perf") / "data.json"
    file.write_text(json.dumps(document))
    return file


WAYS = [
    (protocol, more)
    for protocol in ("http", "grpc")
    for more in ([], ["--streaming"], ["--async"], ["-b", "4"])
    if (protocol, more) != ("http", ["--streaming"])  # streams are gRPC's
]


@pytest.mark.parametrize(("protocol", "more"), WAYS, ids=str)
def test_it_measures_and_finds_no_error(
    linear_server: Served, data: Path, tmp_path: Path, protocol: str, more: list[str]
) -> None:
    program, variables = perf_analyzer()
    address = linear_server.http if protocol == "http" else linear_server.grpc
    done = subprocess.run(
        [
            program, "-m", "linear", "-u", address, "-i", protocol, "--concurrency-range", "4",
            "--measurement-mode", "count_windows", "--measurement-request-count", "100",
            "--stability-percentage", "99", "--max-trials", "20", "-f", tmp_path / "report.csv",
            *(["--input-data", data] if "-b" not in more else []), *more,
        ],
        capture_output=True, text=True, env=variables, timeout=120,
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "error" not in printed.lower(), printed
    with (tmp_path / "report.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["Inferences/Second"]) > 0
    assert row["Concurrency"] == "4"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tensors_in_shared_memory(tmp_path: Path, protocol: str) -> None:
    """It calls its shared memory as the model calls its tensors."""
    program, variables = perf_analyzer()
    prefixes = ("--shared-memory", "INPUT", "--shared-memory", "OUTPUT")
    with serve(sums_bundle(tmp_path, "simple"), *prefixes) as served:
        address = served.http if protocol == "http" else served.grpc
        done = subprocess.run(
            [
                program, "-m", "simple", "-u", address, "-i", protocol, "--concurrency-range", "2",
                "--shared-memory", "system", "--output-shared-memory-size", "64",
                "--measurement-mode", "count_windows", "--measurement-request-count", "100",
                "--stability-percentage", "99", "--max-trials", "20",
            ],
            capture_output=True, text=True, env=variables, timeout=120,
        )  # fmt: skip
    printed = done.stdout + done.stderr
    assert "had error" not in printed, printed
    assert "Successful request count" in printed, printed


def test_many_streams(tmp_path: Path) -> None:
    program, variables = perf_analyzer()
    with serve(linear_bundle(tmp_path), "--grpc-streams", 40) as served:
        done = subprocess.run(
            [
                program, "-m", "linear", "-u", served.grpc, "-i", "grpc", "--streaming",
                "--concurrency-range", "40", "--max-threads", "40",
                "--measurement-mode", "count_windows", "--measurement-request-count", "100",
                "--stability-percentage", "99", "--max-trials", "20",
            ],
            capture_output=True, text=True, env=variables, timeout=120,
        )  # fmt: skip
    printed = done.stdout + done.stderr
    assert "had error" not in printed, printed
    assert "Successful request count" in printed, printed
