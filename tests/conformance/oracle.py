"""A real Triton Inference Server on a CPU, from the wheel `nvidia-pytriton`, with its Python backend.

Its model does what tests.bundles.linear does, so that both servers can be asked the same. Used as an oracle
of the protocol, never for speed.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pytest

from tests.bundles import WEIGHT, linear
from tests.conformance.environments import environment
from tests.conformance.models import LABELS

STARTING_S: Final = 60.0
_CONFIG: Final = """
name: "linear"
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
_MODEL: Final = """
import sys

sys.path.append({packages!r})  # the backend ignores PYTHONPATH
import numpy as np
import triton_python_backend_utils as pb_utils

WEIGHT = np.array({weight!r}, np.float32)


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = np.maximum(x @ WEIGHT + np.float32(0.5), 0)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ascontiguousarray(y, np.float32))]))
        return answers
"""


class Oracle(msgspec.Struct, frozen=True):
    """HOST:PORT of a running Triton's HTTP and gRPC."""

    http: str
    grpc: str


@contextmanager
def triton(folder: Path) -> Iterator[Oracle]:
    """A running Triton with the model `linear`; skips where there is none."""
    python = environment("pytriton", "nvidia-pytriton==0.7.0")
    packages = next(python.parent.parent.glob("lib/python*/site-packages"))
    version = packages.parent.name.removeprefix("python")
    home = folder / "triton"
    shutil.copytree(packages / "pytriton" / "tritonserver", home)
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"the wheel has no Python backend for Python {version}")
    shutil.copy(stub, home / "backends" / "python")
    model = folder / "models" / "linear"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(_CONFIG)
    (model / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (model / "1" / "model.py").write_text(
        _MODEL.format(weight=WEIGHT.tolist(), packages=str(packages))
    )
    http, grpc, metrics = _free_ports(3)
    libraries = [packages / "nvidia_pytriton.libs"]
    command = [
        home / "bin" / "tritonserver", f"--model-repository={folder / 'models'}",
        f"--backend-directory={home / 'backends'}", f"--http-port={http}", f"--grpc-port={grpc}",
        f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
        "--exit-timeout-secs=1", "--model-control-mode=explicit", "--load-model=linear",
    ]  # fmt: skip
    variables = {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": "/usr/bin:/bin",  # its Python backend finds the system's Python here
        "HOME": str(folder),
    }
    log = folder / "triton.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=output, env=variables)
    try:
        _wait(popen, f"http://127.0.0.1:{http}/v2/models/linear/ready", log)
        _probe(f"http://127.0.0.1:{http}/v2/models/linear/infer", log)
        yield Oracle(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    finally:
        popen.kill()
        popen.wait()


def _wait(popen: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + STARTING_S
    while time.monotonic() < end:
        if popen.poll() is not None:
            pytest.skip(f"Triton does not start here: {log.read_text()[-800:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.skip(f"Triton is not ready in {STARTING_S:g} s: {log.read_text()[-800:]}")


def _probe(url: str, log: Path) -> None:
    """Its backend runs in whatever Python it finds; where the pieces do not fit it answers nonsense."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=10) as answer:
            got = json.loads(answer.read())["outputs"][0]["data"]
    except OSError as error:
        pytest.skip(f"Triton does not answer here: {error}; {log.read_text()[-800:]}")
    np.testing.assert_allclose(got, linear(np.float32([[1, 2, 3, 4]]))[0], rtol=1e-5)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
