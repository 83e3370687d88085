"""A server whose GPU is taken away and given back, asked all the time. Every answer is compared."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeserve.isolation import IsolatedSession
from edgeserve.serve.settings.server import Settings
from tests.gpu.conftest import Driver
from tests.gpu.digits import images, logits
from tests.serve.background import Background


class Client:
    """Asks a server without a pause, on a thread of its own, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v2/models/digits/infer"
        self._stop = threading.Event()
        self._inputs = images(8, seed=3)
        self._expected = logits(self._inputs)
        self.devices: list[str] = []
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def wait_for(self, device: str, seconds: float = 60) -> None:
        """Until the last answers are all of this device."""
        wait_until(lambda: self.devices[-3:] == [device] * 3, seconds, f"answers from {device}")

    def _run(self) -> None:
        count = 0
        while not self._stop.is_set():
            row = count % len(self._inputs)
            count += 1
            try:
                self._ask(self._inputs[row : row + 1], self._expected[row : row + 1])
            except Exception as error:
                self.problems.append(repr(error))

    def _ask(self, inputs: np.ndarray, expected: np.ndarray) -> None:
        tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32"}
        body = json.dumps({"inputs": [tensor | {"data": inputs.ravel().tolist()}]}).encode()
        with urllib.request.urlopen(self._url, body, timeout=60) as response:
            device = response.headers["x-edgeserve-device"]
            answer = json.loads(response.read())
        got = np.array(answer["outputs"][0]["data"], np.float32).reshape(expected.shape)
        if not np.allclose(got, expected, rtol=1e-3, atol=1e-3):
            self.problems.append(f"wrong numbers from {device}: {got} instead of {expected}")
        if answer["parameters"]["edgeserve_device"] != device:
            self.problems.append("header and parameter name different devices")
        self.devices.append(device)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


def taken_away_and_given_back(bundle: Path, driver: Driver) -> None:
    """Worker killed with its driver there, then killed with the driver gone, then the driver back."""
    settings = Settings(bundle=str(bundle), http_port=0, reopen=0.2, watchdog=20.0)
    with Background(settings) as server, Client(server.url) as client:
        assert [a.ok for a in server.started.models[0].attempts][:1] == [True], (
            server.started.models[0].attempts
        )
        assert server.started.models[0].placement is not None
        assert "on gpu, fp32" in server.started.models[0].placement
        client.wait_for("gpu")

        kill_worker(server)
        client.wait_for("cpu")
        client.wait_for("gpu")

        driver.take_away()
        kill_worker(server)
        client.wait_for("cpu")
        chain = chain_of(server)
        tried = len(client.devices)
        wait_until(
            lambda: "adapter" in (chain.attempts[0].error or "").lower(),
            60,
            "the engine's own words about the missing driver",
        )
        wait_until(lambda: len(client.devices) > tried + 5, 60, "answers meanwhile")
        assert client.devices[-1] == "cpu"

        driver.give()
        client.wait_for("gpu", seconds=120)
        metrics = urllib.request.urlopen(f"{server.url}/metrics", timeout=10).read().decode()
    assert client.problems == []
    lines = [line for line in metrics.splitlines() if line.startswith("edgeserve_fallback_total")]
    falls = sum(float(line.rpartition(" ")[2]) for line in lines if 'to="' in line)
    assert falls >= 2, lines
    assert all("gpu" in line for line in lines), lines


def chain_of(server: Background) -> Any:
    assert server._service is not None
    return server._service._repository.loaded()[0].engine.chain


def kill_worker(server: Background) -> None:
    session = chain_of(server).session
    assert isinstance(session, IsolatedSession)
    os.kill(session.pid, signal.SIGKILL)
