"""`edgeserve run` as a process: what it prints, how it ends, and that SIGTERM loses no request."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Candidate
from edgeserve.serve.access.addresses import addresses_of
from edgeserve.tensors import Array, Interface, TensorSpec
from tests.bundles import linear, linear_bundle, write_bundle
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.slow import MAX_BATCH, slow, slow_bundle

CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
NPU_THEN_CPU = (Candidate("onnx-fp32", "onnxruntime", "npu"), CPU)  # no wheel of ours has an NPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    linear_bundle(folder)
    linear_bundle(folder, "npu", NPU_THEN_CPU)
    linear_bundle(folder, "behind", (CPU, Candidate("onnx-fp32", "onnxruntime", "gpu")))
    slow_bundle(folder)
    return folder


class Process:
    """`edgeserve run` in a process of its own, once it has named its URL."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "edgeserve", "run", *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
        )  # fmt: skip
        self.printed = ""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.printed += line
            if line.startswith("try: "):
                break
        found = re.search(r"http://\S+:\d+", self.printed)
        assert found, self.printed
        self.url = found[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=30)
        self.printed += err
        assert out == ""
        assert "Traceback" not in self.printed
        return self.popen.returncode


@contextmanager
def serving(*arguments: str, cwd: Path) -> Iterator[Process]:
    process = Process(*arguments, cwd=cwd)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """For servers that do not start."""
    return subprocess.run(
        [sys.executable, "-m", "edgeserve", "run", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=60,
    )  # fmt: skip


def get(url: str, path: str) -> tuple[int, dict[str, object]]:
    with RawClient(url) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        status, _, body = client.response()
        return status, json.loads(body) if body else {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_serves_and_where_and_ends_with_0(folder: Path, number: int) -> None:
    with serving("linear.edge", "--http-port", "0", cwd=folder) as process:
        row = next(x for x in process.printed.splitlines() if "onnxruntime" in x)
        assert re.search(r"\bcpu\b.*\bserving\b.*\d+ ms", row)
        assert f"serving linear at {process.url} (on the event loop" in process.printed
        assert f"try: curl {process.url}/v2/models/linear\n" in process.printed
        also = [x.removeprefix("also at ") for x in process.printed.splitlines() if "also" in x]
        assert len(also) == len(addresses_of("localhost")) - 1
        assert all(get(url, "/v2/models/linear")[0] == 200 for url in also)
        status, document = get(process.url, "/v2/models/linear")
        assert (status, document["name"]) == (200, "linear")
        assert process.stop(number) == 0


def test_the_table_says_why_a_candidate_does_not_serve(folder: Path) -> None:
    with serving("npu.edge", "--http-port", "0", "--name", "mine", cwd=folder) as process:
        printed = " ".join(process.printed.split())
        assert "onnxruntime cannot open 'npu'" in printed
        assert "hint: onnxruntime/npu/onnx-fp32: edgeserve doctor names the package" in printed
        assert "serving mine at" in process.printed
        assert f"status page: {process.url}/status\n" in process.printed
        assert process.stop() == 0


def test_injected_faults_are_said_at_start_and_survived(folder: Path) -> None:
    faults = ("--inject", "gpu:stand-in", "--inject", "gpu:kill@40", "--reopen", "100")
    with serving("linear.edge", "--http-port", "0", *faults, cwd=folder) as process:
        printed = " ".join(process.printed.split())
        assert "warning: faults are injected, this is a test: gpu:stand-in, gpu:kill@40" in printed
        assert "gpu (isolated)" in printed
        devices = []
        with RawClient(process.url) as client:
            for _ in range(40):
                client.send(post(infer_body([[1, 2, 3, 4]])))
                status, headers, _ = client.response()
                assert status == 200
                devices.append(headers["x-edgeserve-device"])
        assert (devices[0], devices[-1]) == ("gpu", "cpu")
        status, document = get(process.url, "/v2/health/ready")
        assert status == 200
        text = json.dumps(document)
        assert '"instead_of": {"candidate": "onnxruntime/gpu/onnx-fp32"' in text
        assert "died of SIGKILL" in text
        assert process.stop() == 0


def test_a_required_device_that_does_not_serve_exits_3(folder: Path) -> None:
    done = run("npu.edge", "--http-port", "0", "--require", "npu", cwd=folder)
    assert done.returncode == 3
    assert "error: 'npu' is required, but onnxruntime/cpu/onnx-fp32 would serve" in done.stderr
    assert "onnxruntime cannot open 'npu'" in done.stderr


def test_a_required_device_serves_though_another_stands_before_it(folder: Path) -> None:
    """Where several calls run side by side is planned for it as well."""
    arguments = ("--require", "gpu", "--inject", "gpu:stand-in")
    with serving("behind.edge", "--http-port", "0", *arguments, cwd=folder) as process:
        table = process.printed.splitlines()
        first = next(line for line in table if line.startswith("onnxruntime/"))
        assert first.split()[:2] == ["onnxruntime/gpu/onnx-fp32", "gpu"]
        assert "serving" in first
        with RawClient(process.url) as client:
            client.send(post(infer_body([[1, 2, 3, 4]]), "/v2/models/behind/infer"))
            status, headers, _ = client.response()
        assert (status, headers["x-edgeserve-device"]) == (200, "gpu")
        assert process.stop() == 0
    done = run("behind.edge", "--http-port", "0", "--require", "gpu", cwd=folder)
    assert done.returncode == 3
    assert "onnxruntime cannot open 'gpu'" in done.stderr


def test_a_fault_that_is_none_exits_2(folder: Path) -> None:
    done = run("linear.edge", "--http-port", "0", "--inject", "gpu:crsh@1", cwd=folder)
    assert done.returncode == 2
    assert "unknown fault 'crsh'" in done.stderr
    assert "did you mean 'crash'?" in done.stderr


def test_a_config_file_serves_and_flags_win(folder: Path, tmp_path: Path) -> None:
    config = folder / "serve.toml"
    config.write_text('bundle = "linear.edge"\nhttp_port = 1\nname = "filed"\n')
    with serving("--config", str(config), "--http-port", "0", cwd=tmp_path) as process:
        assert get(process.url, "/v2/models/filed")[0] == 200
        assert process.stop() == 0


class Client:
    """A keep-alive client that asks until the server ends the connection, and checks every answer."""

    def __init__(self, url: str, model: str, number: int) -> None:
        self.answered = 0
        self.told = False  # an answer said Connection: close
        self.lost: str | None = None
        self.warm = threading.Event()
        self._url = url
        self._path = f"/v2/models/{model}/infer"
        self._compute = linear if model == "linear" else slow
        self._rows = 1 if model == "linear" else MAX_BATCH  # full batches: the others wait
        self._random = np.random.default_rng(number)

    def run(self) -> None:
        with RawClient(self._url) as client:
            client.socket.settimeout(30)
            while not self.told:
                x = self._random.normal(size=(self._rows, 4)).astype(np.float32)
                try:
                    client.send(post(infer_body(x.tolist()), self._path))
                    status, headers, body = client.response()
                except ConnectionError as error:
                    if client._buffer or not never_read(client.socket, error):
                        self.lost = f"after {self.answered} answers: {error!r}"
                    return
                self._check(x, status, body)
                self.told = headers.get("connection") == "close"
            assert client.is_closed()

    def _check(self, x: Array, status: int, body: bytes) -> None:
        assert status == 200, body
        y = np.float32(json.loads(body)["outputs"][0]["data"]).reshape(-1, 3)
        np.testing.assert_allclose(y, self._compute(x), rtol=1e-3, atol=1e-3)
        self.answered += 1
        if self.answered == 5:
            self.warm.set()


def never_read(connection: socket.socket, error: ConnectionError) -> bool:
    """Whether the server closed before it read the last request, as it may do between requests.

    The kernel knows: bytes that nobody read, or that arrived after the close, reset the connection;
    one whose bytes were all read ends in order, and then a whole request was dropped.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return True
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("model", ["linear", "slow"])
def test_sigterm_under_load_loses_nothing(folder: Path, model: str) -> None:
    with serving(f"{model}.edge", "--http-port", "0", cwd=folder) as process:
        clients = [Client(process.url, model, number) for number in range(8)]
        with ThreadPoolExecutor(len(clients)) as pool:
            running = [pool.submit(client.run) for client in clients]
            warm = [client.warm.wait(30) for client in clients]
            code = process.stop()
            for future in running:
                future.result()
        assert warm == [True] * len(clients)
        assert [client.lost for client in clients if client.lost] == []
        assert code == 0
        if model == "slow":  # requests are in flight all the time
            assert any(client.told for client in clients)


def test_a_drain_that_runs_out_of_time_says_so_and_ends_with_1(folder: Path) -> None:
    arguments = ("slow.edge", "--http-port", "0", "--drain-timeout", "0.001")
    with serving(*arguments, cwd=folder) as process:
        connections = [RawClient(process.url) for _ in range(60)]
        try:
            for connection in connections:
                full = np.ones((MAX_BATCH, 4), np.float32).tolist()
                connection.send(post(infer_body(full), "/v2/models/slow/infer"))
            connections[0].response()
            assert process.stop() == 1
            assert "requests were given up after 0.001 s" in process.printed
        finally:
            for connection in connections:
                connection.close()


def test_a_port_in_use_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("linear.edge", "--http-port", str(port), cwd=folder)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-3:] == [
        f"error: cannot listen on 127.0.0.1:{port}",
        "cause: the port is in use",
        "hint: --http-port 0 picks a free one",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent.edge"], 2, "error: absent.edge does not exist"),
        ([], 2, "error: no bundle to serve"),
        (["--config", "absent.toml"], 2, "error: absent.toml is not a readable TOML file"),
        (["linear.edge", "--http-port", "65536"], 2, "error: http_port 65536 is not a valid port"),
        (["linear.edge", "--host", "0.0.0.0"], 2, "error: 0.0.0.0 is open to the network"),
        (["linear.edge", "--fallback", "maybe"], 2, "--fallback"),
        (["linear.edge", "--device", "gpu"], 2, "error: no candidate of the chain matches"),
        (["linear.edge", "--variant", "int8"], 2, "error: no candidate of the chain matches"),
        (["npu.edge", "--fallback", "never"], 3, "error: onnxruntime cannot open 'npu'"),
        (["npu.edge", "--device", "npu"], 3, "error: no candidate of 'npu' works on this machine"),
    ],
)
def test_what_does_not_start_says_why(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    done = run(
        *arguments, *([] if "--http-port" in arguments else ["--http-port", "0"]), cwd=folder
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


TAMPERED = pytest.mark.parametrize("file", ["onnx-fp32/model.onnx", "golden-outputs.npz"])


def run_tampered(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    path = linear_bundle(folder) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return run("linear.edge", "--http-port", "0", cwd=folder)


@TAMPERED
def test_a_changed_byte_is_refused(tmp_path: Path, file: str) -> None:
    done = run_tampered(tmp_path, file)
    assert done.returncode != 0
    assert f"linear.edge/{file} is not the file the bundle was written with" in done.stderr
    assert "hint: copy the bundle again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "serving" not in done.stderr


@TAMPERED
def test_a_changed_byte_is_a_wrong_bundle(tmp_path: Path, file: str) -> None:
    assert run_tampered(tmp_path, file).returncode == 2


def test_sigterm_lets_a_request_that_is_arriving_arrive(folder: Path) -> None:
    with serving("linear.edge", "--http-port", "0", cwd=folder) as process:
        with RawClient(process.url) as client:
            request = post(infer_body([[1, 2, 3, 4]]))
            client.send(request[:-1])
            assert get(process.url, "/v2")[0] == 200  # so the part before has been read as well
            process.popen.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.popen.wait(0.5)
            client.send(request[-1:])
            status, headers, _ = client.response()
        assert (status, headers["connection"]) == (200, "close")
        assert process.popen.wait(30) == 0


def test_sigterm_lets_a_slow_reader_have_its_answer(tmp_path: Path) -> None:
    wide_bundle(tmp_path)
    body = infer_body([[1, 2, 3, 4]], parameters={"binary_data_output": True})
    with serving("wide.edge", "--http-port", "0", cwd=tmp_path) as process:
        with RawClient(process.url) as client:
            client.send(post(body, "/v2/models/wide/infer"))
            client._more()  # it is being written
            process.popen.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.popen.wait(0.5)
            status, _, answer = client.response()
        assert status == 200
        assert len(answer) > 4 * WIDE
        assert process.popen.wait(30) == 0


def test_a_reader_that_never_reads_is_cut_in_the_end(tmp_path: Path) -> None:
    wide_bundle(tmp_path)
    body = infer_body([[1, 2, 3, 4]], parameters={"binary_data_output": True})
    arguments = ("wide.edge", "--http-port", "0", "--drain-timeout", "0.2")
    with serving(*arguments, cwd=tmp_path) as process, RawClient(process.url) as client:
        client.send(post(body, "/v2/models/wide/infer"))
        client._more()  # it is being written
        assert process.stop() == 1
        assert "requests were given up after 0.2 s" in process.printed


def test_idle_clients_need_no_time_to_drain(folder: Path) -> None:
    arguments = ("linear.edge", "--http-port", "0", "--drain-timeout", "0")
    with serving(*arguments, cwd=folder) as process, RawClient(process.url) as client:
        client.send(post(infer_body([[1, 2, 3, 4]])) + b"\r\n")
        assert client.response()[0] == 200
        assert process.stop() == 0
        assert client.is_closed()


def test_what_reached_the_kernel_before_sigterm_is_answered(folder: Path) -> None:
    """The server is stopped, so that it has read nothing, accepted nothing, when SIGTERM comes."""
    with serving("linear.edge", "--http-port", "0", cwd=folder) as process:
        with RawClient(process.url) as old, RawClient(process.url) as idle:
            for client in (old, idle):
                client.send(b"GET /v2 HTTP/1.1\r\nHost: t\r\n\r\n")
                assert client.response()[0] == 200
            process.popen.send_signal(signal.SIGSTOP)
            with RawClient(process.url) as new:
                for client in (old, new):
                    client.send(post(infer_body([[1, 2, 3, 4]])))
                process.popen.send_signal(signal.SIGTERM)
                process.popen.send_signal(signal.SIGCONT)
                assert [client.response()[0] for client in (old, new)] == [200, 200]
            assert idle.is_closed()
        assert process.popen.wait(30) == 0


def test_sigterm_ends_a_pipeline_behind_the_request_that_had_begun(folder: Path) -> None:
    with serving("linear.edge", "--http-port", "0", cwd=folder) as process:
        with RawClient(process.url) as client:
            request = post(infer_body([[1, 2, 3, 4]]))
            client.send(request * 2 + request[:-1])
            assert [client.response()[0] for _ in range(2)] == [200, 200]
            process.popen.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.popen.wait(0.5)
            client.send(request[-1:] + request)
            status, headers, _ = client.response()
            assert (status, headers["connection"]) == (200, "close")
            assert client.is_closed()
        assert process.popen.wait(30) == 0


WIDE = 4_000_000  # its answers are more than socket buffers hold


def wide_bundle(folder: Path) -> None:
    """wide.edge: x FP32[batch,4], y FP32[batch,WIDE], its sum repeated."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
            helper.make_node("Expand", ["sum", "shape"], ["y"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDE])],
        [
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(np.array([1, WIDE]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 4)),),
        (TensorSpec("y", "FP32", ("batch", WIDE)),),
        max_batch=1,
    )
    x, y = np.ones((1, 4), np.float32), np.full((1, WIDE), 4, np.float32)
    write_bundle(folder, "wide", model, interface, {"x": x}, {"y": y})
