"""The life of a server as a process: signals at every moment, a lame-duck time, closed streams, bad versions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cli.test_run import get, serving
from tests.cli.test_run_models import ask
from tests.serve.conftest import RawClient, post
from tests.serve.repositories import shifted_bundle, version
from tests.waiting import wait_for

SLOW = ("--inject", "gpu:stand-in", "--inject", "gpu:slow-open=60")
BOTH = pytest.mark.parametrize("workers", ["1", "2"])


@contextmanager
def starting(*arguments: str, cwd: Path, pause_s: float) -> Iterator[subprocess.Popen[str]]:
    """A server that was started `pause_s` seconds ago."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "edgeserve", "run", *arguments, "--http-port", "0"],
        cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(pause_s)
        yield popen
    finally:
        popen.kill()
        popen.communicate()


def change(url: str, model: str, what: str) -> int:
    """Load or unload a model; the status."""
    address = url.removeprefix("http://")
    head = f"POST /v2/repository/models/{model}/{what} HTTP/1.1\r\nHost: {address}\r\n"
    with RawClient(url) as client:
        client.socket.settimeout(30)
        client.send(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        return client.response()[0]


def takes_hangups(pid: int) -> bool:
    """Whether the process has a handler for SIGHUP, as it has once its first lines have run."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGHUP - 1) & 1)


def until_it_serves(popen: subprocess.Popen[str]) -> None:
    assert popen.stderr is not None
    assert any(line.startswith("try: ") for line in popen.stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_a_device_opens_slowly_ends_it_at_once(
    tmp_path: Path, number: int, code: int
) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with starting("m.edge", *SLOW, cwd=tmp_path, pause_s=0) as popen:
        wait_for(lambda: bool(psutil.Process(popen.pid).children()))  # the slow device's process
        popen.send_signal(number)
        began = time.monotonic()
        assert popen.wait(20) == code
        assert time.monotonic() - began < 5


def test_a_signal_while_workers_open_slowly_ends_them_at_once(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", "--workers", "2", "--inject", "cpu:slow-open=60")
    with starting(*arguments, cwd=tmp_path, pause_s=0) as popen:
        wait_for(lambda: len(psutil.Process(popen.pid).children(recursive=True)) > 1)
        popen.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, printed = popen.communicate(timeout=20)
        assert time.monotonic() - began < 5
        assert popen.returncode == 0
        assert "asyncio" not in printed


def test_a_load_that_takes_long_stops_no_other_change_nor_the_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shifted_bundle(tmp_path / "models", name, 1)
    (tmp_path / "serve.toml").write_text(
        'repository = "models"\nhttp_port = 0\nmodel_control = true\nload = ["a"]\n'
        '[[model]]\nname = "b"\ninject = ["gpu:stand-in", "gpu:slow-open=60"]\n'
    )
    with serving("--config", "serve.toml", cwd=tmp_path) as process:
        answers: list[int] = []

        def load() -> None:
            answers.append(change(process.url, "b", "load"))

        loading = threading.Thread(target=load)
        loading.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert change(process.url, "a", "unload") == 200
        assert change(process.url, "a", "load") == 200
        assert ask(process.url, "a") == 1
        assert process.stop() == 0
        assert time.monotonic() - began < 10
        loading.join(10)
        assert answers == [503]  # its client is told


@BOTH
def test_a_hangup_before_it_serves_does_not_end_it(tmp_path: Path, workers: str) -> None:
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", "--workers", workers)
    with starting(*arguments, cwd=tmp_path, pause_s=0) as popen:
        wait_for(lambda: takes_hangups(popen.pid))
        for _ in range(8):
            popen.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        assert popen.poll() is None
        until_it_serves(popen)
        popen.send_signal(signal.SIGHUP)
        popen.send_signal(signal.SIGTERM)
        popen.send_signal(signal.SIGHUP)
        assert popen.wait(30) == 0


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", "--http-port", "0", "--lame-duck", "60", cwd=tmp_path) as process:
        process.popen.send_signal(signal.SIGINT)
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 503)
        process.popen.send_signal(signal.SIGTERM)  # once more: it goes on
        time.sleep(0.2)
        assert process.popen.poll() is None
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(10) == 130


def test_workers_start_where_a_server_has_just_ended(tmp_path: Path) -> None:
    """Connections that it closed linger on the port for a minute."""
    shifted_bundle(tmp_path, "m", 1)
    port = str(free_port())
    for workers in ("1", "2"):
        arguments = ("m.edge", "--http-port", port, "--workers", workers)
        with serving(*arguments, cwd=tmp_path) as process, RawClient(process.url) as client:
            client.send(b"GET /v2 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            assert client.response()[0] == 200
            assert process.stop() == 0


@BOTH
def test_a_lame_duck_is_not_ready_and_answers(tmp_path: Path, workers: str) -> None:
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", "--http-port", "0", "--lame-duck", "2", "--workers", workers)
    with serving(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 200)
        process.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 503)
        assert get(process.url, "/v2/health/live")[0] == 200
        assert ask(process.url, "m") == 1  # on a new connection
        assert process.popen.wait(30) == 0


@pytest.mark.slow
@BOTH
def test_an_unread_log_stops_nothing(tmp_path: Path, workers: str) -> None:
    """A pipe holds 64 KiB: more is logged than that."""
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", "--access-log", "--workers", workers)
    with starting(*arguments, cwd=tmp_path, pause_s=0) as popen:
        assert popen.stderr is not None
        lines = []
        for line in popen.stderr:
            lines.append(line)
            if line.startswith("try: "):
                break
        url = next(w for line in lines for w in line.split() if w.startswith("http://127"))
        entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}
        data = json.dumps({"inputs": [entry], "id": 190 * "r"}).encode()
        for _ in range(2):  # both workers, more or less
            with RawClient(url) as client:
                client.socket.settimeout(20)
                for _ in range(400):
                    client.send(post(data, "/v2/models/m/infer"))
                    assert client.response()[0] == 200
        assert get(url, "/v2/health/live")[0] == 200
        popen.terminate()
        assert popen.wait(20) == 0


@BOTH
def test_closed_streams_are_no_reason_to_end(tmp_path: Path, workers: str) -> None:
    """And no socket gets their descriptors: libraries would print into it."""
    shifted_bundle(tmp_path, "m", 1)
    code = (
        "import os, sys\nfor d in (0, 1, 2): os.close(d)\n"
        f"os.execv(sys.executable, [sys.executable, '-m', 'edgeserve', 'run', 'm.edge', '--http-port', '{(port := free_port())}',"
        f" '--workers', '{workers}'])"
    )
    popen = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url))
        assert ask(url, "m") == 1
        server = psutil.Process(popen.pid)
        for process in (server, *server.children()):
            opened = [str(Path(f"/proc/{process.pid}/fd/{d}").readlink()) for d in (0, 1, 2)]
            assert opened == ["/dev/null"] * 3
        popen.terminate()
        assert popen.wait(30) == 0
    finally:
        popen.kill()
        popen.wait()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        return get(url, "/v2/health/ready")[0] == 200
    except OSError:
        return False


@BOTH
def test_a_bad_version_is_shown_and_the_one_before_serves_on(tmp_path: Path, workers: str) -> None:
    models = tmp_path / "models"
    version(models, "m", 1, 1)
    arguments = ("models", "--http-port", "0", "--watch", "0.2", "--workers", workers)
    with serving(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 200)
        bad = version(tmp_path / "made", "m", 2, 2)
        weights = bad / "m.edge" / "onnx-fp32" / "model.onnx"
        weights.write_bytes(weights.read_bytes()[:100])
        (tmp_path / "made" / "m" / "2").rename(models / "m" / "2")

        def told() -> dict[str, str]:
            document: dict[str, object] = get(process.url, "/v2/health/ready")[1]
            found: dict[str, str] = document["models"]["m"].get("failed_versions", {})  # type: ignore[index]
            return found

        wait_for(lambda: "2" in told())
        assert "not the file the bundle was written with" in told()["2"]
        assert ask(process.url, "m") == 1
        status, document = get(process.url, "/v2/health/ready")
        assert (status, document["models"]["m"]["version"]) == (200, "1")  # type: ignore[index]
        with RawClient(process.url) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
            metrics = client.response()[2].decode()
        assert f'edgeserve_version_failed{{model="m",version="2"}} {workers}.0' in metrics
        assert 'edgeserve_version_failed{model="m",version="1"} 0.0' in metrics
        (models / "m" / "config.pbtxt").write_text("dynamic_batching {\n")
        time.sleep(0.6)
        assert ask(process.url, "m") == 1
        assert get(process.url, "/v2/health/ready")[0] == 200
        assert process.stop() == 0


@pytest.mark.slow
def test_a_worker_started_anew_serves_what_the_others_serve(tmp_path: Path) -> None:
    """The newest version is bad: a new worker opens the one before."""
    models = tmp_path / "models"
    version(models, "m", 1, 1)
    arguments = ("models", "--http-port", "0", "--watch", "0.2", "--workers", "2")
    with serving(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 200)
        version(models, "m", 2, 2)
        wait_for(lambda: ask(process.url, "m") == 2)
        bad = version(tmp_path / "made", "m", 3, 3)
        (bad / "m.edge" / "manifest.json").write_text("{")
        bad.rename(models / "m" / "3")
        time.sleep(1)
        children = subprocess.run(
            ["pgrep", "-P", str(process.popen.pid), "-f", "edgeserve.serve.supervisor"],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        os.kill(int(children[0]), signal.SIGKILL)
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 503)
        wait_for(lambda: get(process.url, "/v2/health/ready")[0] == 200)
        assert [ask(process.url, "m") for _ in range(8)] == [2] * 8
        assert process.stop() == 0
