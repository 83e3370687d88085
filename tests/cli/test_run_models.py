"""`edgeserve run` with several models, as a process: flags, reload on SIGHUP and by watching, logs."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.cli.test_run import get, run, serving
from tests.serve.conftest import RawClient, post
from tests.serve.repositories import shifted_bundle, version
from tests.waiting import wait_for


def body(value: float) -> bytes:
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}
    return json.dumps({"inputs": [entry], "id": "mine"}).encode()


def ask(url: str, model: str, value: float = 0.0) -> float:
    """What the model adds."""
    with RawClient(url) as client:
        client.send(post(body(value), f"/v2/models/{model}/infer"))
        status, _, answer = client.response()
    assert status == 200, answer
    return float(json.loads(answer)["outputs"][0]["data"][0]) - value


class Asking(threading.Thread):
    """Asks on one connection until it is told to stop; every answer has to be one that is allowed."""

    def __init__(self, url: str, model: str, allowed: set[float]) -> None:
        super().__init__()
        self.allowed, self.answers, self.wrong = allowed, 0, []  # type: ignore[var-annotated]
        self._url, self._model, self._ending = url, model, threading.Event()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ConnectionError), RawClient(self._url) as client:
            while not self._ending.is_set():
                client.send(post(body(0), f"/v2/models/{self._model}/infer"))
                status, _, answer = client.response()
                self.answers += 1
                if status != 200 or json.loads(answer)["outputs"][0]["data"][0] not in self.allowed:
                    self.wrong.append(answer)

    def stop(self) -> None:
        assert self.is_alive(), "the server ended the connection"
        self._ending.set()
        self.join(30)


def test_several_bundles_serve_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "one", 1)
    shifted_bundle(tmp_path, "two", 2)
    broken = shifted_bundle(tmp_path, "broken", 3)
    (broken / "onnx-fp32" / "model.onnx").write_bytes(b"x")
    arguments = ("one.edge", "two.edge", "broken.edge", "--http-port", "0")
    with serving(*arguments, cwd=tmp_path) as process:
        assert "broken 1" in process.printed
        assert f"serving two at {process.url}" in process.printed
        assert (ask(process.url, "one"), ask(process.url, "two")) == (1, 2)
        status, ready = get(process.url, "/v2/health/ready")
        assert (status, ready["ready"]) == (503, False)
        models = ready["models"]
        assert isinstance(models, dict)
        assert models["two"]["ready"] is True
        assert "bundle was written with" in models["broken"]["reason"]
        assert get(process.url, "/v2/models/one/ready")[0] == 200
        assert get(process.url, "/v2/models/broken/ready")[0] == 503
        assert process.stop() == 0


def test_a_server_of_which_nothing_loads_does_not_start(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (shifted_bundle(tmp_path, name, 1) / "manifest.json").write_text("{")
    done = run("a.edge", "b.edge", "--http-port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: " in done.stderr


@pytest.mark.parametrize("by", ["signal", "watch"])
def test_changes_on_disk_are_followed_without_losing_a_request(tmp_path: Path, by: str) -> None:
    models = tmp_path / "models"
    version(models, "m", 1, 1)
    (tmp_path / "serve.toml").write_text('repository = "models"\nhttp_port = 0\n')
    watch = ("--watch", "0.1") if by == "watch" else ()
    with serving("--config", "serve.toml", *watch, cwd=tmp_path) as process:
        clients = [Asking(process.url, "m", {1.0, 2.0, 3.0}) for _ in range(4)]

        def follow() -> None:
            if by == "signal":
                process.popen.send_signal(signal.SIGHUP)

        for number in (2, 3):
            version(models, "m", number, number)
            follow()
            wait_for(lambda n=number: ask(process.url, "m") == n)  # type: ignore[misc]
        shifted_bundle(models, "other", 5)
        (tmp_path / "serve.toml").write_text(
            'repository = "models"\nhttp_port = 1\n[[model]]\nname = "m"\nversions = "all"\n'
        )
        follow()
        wait_for(lambda: len(get(process.url, "/v2/models/m")[1].get("versions", [])) == 3)
        wait_for(lambda: get(process.url, "/v2/models/other/ready")[0] == 200)
        assert ask(process.url, "other") == 5
        for client in clients:
            client.stop()
        assert sum(c.answers for c in clients) > 20
        assert [c.wrong for c in clients] == [[]] * 4
        (tmp_path / "serve.toml").write_text("nonsense")
        follow()
        time.sleep(0.3)
        assert ask(process.url, "m") == 3
        assert process.stop() == 0
        assert "needs a restart to take effect: http_port" in process.printed
        assert "serve.toml is not a readable TOML file" in process.printed


def test_logs_are_json_and_name_requests_where_that_is_asked_for(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", "--http-port", "0", "--access-log", "--log-format", "json")
    with serving(*arguments, cwd=tmp_path) as process:
        assert ask(process.url, "m") == 1
        process.popen.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.stop() == 0
    lines = [json.loads(x) for x in process.printed.splitlines() if x.startswith("{")]
    (access,) = [x for x in lines if x["logger"] == "edgeserve.access"]
    assert (access["id"], access["model"], access["result"]) == ("mine", "m", "ok")
    assert (access["version"], access["rows"], access["device"]) == ("1", 1, "cpu")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", access["time"])
    assert any(x["level"] == "warning" and "read again" in x["message"] for x in lines)


def test_no_access_log_unless_asked_for(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", "--http-port", "0", cwd=tmp_path) as process:
        assert ask(process.url, "m") == 1
        assert process.stop() == 0
        assert "edgeserve.access" not in process.printed


def test_a_memory_budget_serves_more_than_fits(tmp_path: Path) -> None:
    for number in range(1, 4):
        shifted_bundle(tmp_path / "models", f"m{number}", number, pad_kb=400)
    arguments = ("models", "--memory-budget", "2MB", "--http-port", "0")
    with serving(*arguments, cwd=tmp_path) as process:
        assert "loaded on demand" in process.printed
        assert get(process.url, "/v2/health/ready")[0] == 200
        for _ in range(3):
            assert [ask(process.url, f"m{n}") for n in (1, 2, 3)] == [1, 2, 3]
        assert process.stop() == 0


def test_models_are_loaded_where_they_are_named(tmp_path: Path) -> None:
    for number in (1, 2):
        shifted_bundle(tmp_path / "models", f"m{number}", number)
    with serving("models", "--load", "m2", "--http-port", "0", cwd=tmp_path) as process:
        assert ask(process.url, "m2") == 2
        assert get(process.url, "/v2/models/m1/ready")[0] == 503
        assert get(process.url, "/v2/health/ready")[0] == 200
        assert process.stop() == 0
    done = run("models", "--load", "m3", "--http-port", "0", cwd=tmp_path)
    assert (done.returncode, "there is no model 'm3'" in done.stderr) == (2, True)


def test_eviction_under_load_loses_nothing_and_answers_right(tmp_path: Path) -> None:
    """Three models take turns in memory that holds two, while each is asked without a pause."""
    for number in range(1, 4):
        shifted_bundle(tmp_path / "models", f"m{number}", number, pad_kb=400)
    arguments = ("models", "--memory-budget", "2MB", "--http-port", "0")
    with serving(*arguments, cwd=tmp_path) as process:
        clients = [Asking(process.url, f"m{n}", {float(n)}) for n in (1, 2, 3, 1, 2, 3)]
        wait_for(lambda: all(c.answers > 20 for c in clients))
        for client in clients:
            client.stop()
        assert [c.wrong for c in clients] == [[]] * 6
        assert process.stop() == 0


def test_unloading_under_load_refuses_and_never_answers_wrong(tmp_path: Path) -> None:
    shifted_bundle(tmp_path / "models", "m", 1)
    with serving("models", "--model-control", "--http-port", "0", cwd=tmp_path) as process:
        clients = [Asking(process.url, "m", {1.0}) for _ in range(4)]
        for number in range(10):
            action = "unload" if number % 2 == 0 else "load"
            with RawClient(process.url) as client:
                asked = post(b"", f"/v2/repository/models/m/{action}")
                client.send(asked.replace(b"Host: test", b"Host: localhost"))
                assert client.response()[0] == 200
            time.sleep(0.05)
        wait_for(lambda: all(c.answers > 20 for c in clients))
        for client in clients:
            client.stop()
        refused = [answer for c in clients for answer in c.wrong]
        assert all(b"is not ready" in answer for answer in refused), refused[:3]
        assert sum(c.answers for c in clients) > len(refused)
        assert process.stop() == 0
