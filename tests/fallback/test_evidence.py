"""One request's failure over HTTP and gRPC, while others ask: who answers, with which status, what is counted."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

from edgeserve.chain import BOARD
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle
from tests.fallback.data import gather_bundle, loop_bundle, overflow_bundle
from tests.serve.background import Background
from tests.waiting import wait_for

CLIENTS = 8


@contextmanager
def served(bundle: Path, *faults: str, **changes: Any) -> Iterator[Background]:
    values = {"http_port": 0, "grpc_port": 0, "threads": 1, "spin": False, "reopen": 0.3, **changes}
    settings = Settings(bundle=str(bundle), inject=("gpu:stand-in", *faults), **values)
    with Background(settings) as server:
        yield server


def get(server: Background, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def infer(server: Background, model: str, name: str, x: np.ndarray) -> tuple[int, str, Any]:
    """Status, the device that answered, and the first output's numbers or the error."""
    kind = {"f": "FP32", "i": "INT64"}[x.dtype.kind]
    entry = {"name": name, "shape": list(x.shape), "datatype": kind, "data": x.tolist()}
    body = json.dumps({"inputs": [entry]}).encode()
    request = urllib.request.Request(f"{server.url}/v2/models/{model}/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.loads(answer.read())
            device = answer.headers["x-edgeserve-device"]
            assert content["parameters"]["edgeserve_device"] == device
            return answer.status, device, content["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        return error.code, "", json.loads(error.read())["error"]


def counted(server: Background, metric: str) -> dict[tuple[str, ...], float]:
    """A metric's values by its labels without the model's name and version."""
    found = {}
    for family in text_string_to_metric_families(get(server, "/metrics")[1].decode()):
        for sample in family.samples:
            if sample.name == metric and sample.value:
                labels = [
                    v for k, v in sorted(sample.labels.items()) if k not in ("model", "version")
                ]
                found[tuple(labels)] = sample.value
    return found


class Elsewhere:
    """Another model's chain, as the board knows it."""

    def suspect(self, device: str) -> None:
        pass

    def found(self, key: str) -> None:
        pass


class Ordinary:
    """Clients whose requests are like the golden samples; which devices answered, and what went wrong."""

    def __init__(self, server: Background, count: int = CLIENTS) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        self.devices: set[str] = set()
        self.answers = 0
        self.problems: list[str] = []

    def _ask(self, number: int) -> None:
        random = np.random.default_rng(number)
        while not self._stop.is_set():
            x = random.normal(size=(1, 4)).astype(np.float32)
            status, device, data = infer(self._server, "overflow", "x", x)
            if status != 200 or not np.allclose(data, x[0], atol=1e-5):
                self.problems.append(f"{status} {data}")
                return
            self.devices.add(device)
            self.answers += 1

    def __enter__(self) -> Ordinary:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_stream_of_too_large_numbers_leaves_the_device_to_all_others(tmp_path: Path) -> None:
    with served(overflow_bundle(tmp_path)) as server:
        with Ordinary(server) as others:
            for number in range(60):
                large = np.array([[1000, 2, 3, number]], np.float32)
                assert infer(server, "overflow", "x", large) == (200, "cpu", large[0].tolist())
            wait_for(lambda: others.answers > 100)
        assert others.problems == []
        assert others.devices == {"gpu"}
        assert counted(server, "edgeserve_fallback_total") == {}
        labels = ("onnxruntime/gpu/onnx-fp16", "non-finite", "onnxruntime/cpu/onnx-fp32")
        assert counted(server, "edgeserve_request_replayed_total") == {labels: 60}
        info = counted(server, "edgeserve_candidate_info")
        assert list(info) == [("gpu", "onnxruntime", "onnx-fp16")]
        assert counted(server, "edgeserve_request_failures_total") == {}


def test_an_index_out_of_range_is_the_client_s_mistake_over_both_protocols(tmp_path: Path) -> None:
    with served(gather_bundle(tmp_path)) as server:
        status, _, error = infer(server, "gather", "i", np.array([10]))
        assert status == 400
        assert error.startswith("the model fails on these inputs: onnxruntime failed on ")
        assert "idx=10 must be within" in error
        with triton.InferenceServerClient(server.started.grpc) as client:
            wanted = triton.InferInput("i", [1], "INT64")
            wanted.set_data_from_numpy(np.array([10], np.int64))
            with pytest.raises(triton.InferenceServerException) as caught:
                client.infer("gather", [wanted])
            assert caught.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
            wanted.set_data_from_numpy(np.array([3], np.int64))
            assert client.infer("gather", [wanted]).as_numpy("y").tolist() == [[3.0, 6.0]]
        assert infer(server, "gather", "i", np.array([4])) == (200, "gpu", [4.0, 8.0])
        assert counted(server, "edgeserve_request_failures_total") == {("invalid",): 2}
        assert counted(server, "edgeserve_fallback_total") == {}


def test_bad_requests_do_not_spoil_the_batches_they_are_in(tmp_path: Path) -> None:
    """Every second client asks for a row that there is not; a delay has them share batches."""
    results: list[tuple[int, tuple[int, str, Any]]] = []

    def ask(server: Background, number: int) -> None:
        for _ in range(10):
            index = number if number % 2 == 0 else 10 + number
            results.append((index, infer(server, "gather", "i", np.array([index]))))

    with served(gather_bundle(tmp_path), batch_delay=0.02) as server:
        threads = [threading.Thread(target=ask, args=(server, n)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, (status, device, data) in results:
            if index < 10:
                assert (status, device, data) == (200, "gpu", [float(index), 2.0 * index])
            else:
                assert status == 400
        assert len(results) == 10 * CLIENTS
        assert counted(server, "edgeserve_fallback_total") == {}


@pytest.mark.parametrize("how", [{"fallback": "never"}, {"require": "gpu"}])
def test_a_device_that_must_serve_and_is_wrong_is_not_ready_until_it_is_right(
    tmp_path: Path, how: dict[str, str]
) -> None:
    """It answers NaN from a call on that comes after the warm-up."""
    x = np.ones((1, 4), np.float32)
    wanted = linear(x)[0].tolist()
    with served(linear_bundle(tmp_path), "gpu:nan@60", reopen=1.5, **how) as server:
        assert get(server, "/v2/health/ready")[0] == 200
        seen = []
        end = time.monotonic() + 30
        while get(server, "/v2/health/ready")[0] == 200:
            assert time.monotonic() < end
            seen.append(infer(server, "linear", "x", x))
        assert {status for status, _, _ in seen[:-2]} == {200}
        status, body = get(server, "/v2/health/ready")
        model = json.loads(body)["models"]["linear"]
        assert (status, model["ready"]) == (503, False)
        assert get(server, "/v2/models/linear/ready")[0] == 503
        meanwhile = infer(server, "linear", "x", x)
        if "fallback" in how:
            assert meanwhile[0] == 503
            assert "returned NaN or infinity" in meanwhile[2]
        else:
            assert meanwhile[:2] == (200, "cpu")
            np.testing.assert_allclose(meanwhile[2], wanted, rtol=1e-5)
        wait_for(lambda: get(server, "/v2/health/ready")[0] == 200)
        status, device, data = infer(server, "linear", "x", x)
        assert (status, device) == (200, "gpu")
        np.testing.assert_allclose(data, wanted, rtol=1e-5)


def test_what_a_wrong_device_answered_is_not_kept(tmp_path: Path) -> None:
    """Wrong from a call after the warm-up on; its answer is in the cache until it is found out."""
    x = np.ones((1, 4), np.float32)
    right = linear(x)[0]
    keep = {"cache": 1 << 20, "reopen": 1000.0}
    with served(linear_bundle(tmp_path), "gpu:wrong@60", **keep) as server:
        random = np.random.default_rng(0)
        end = time.monotonic() + 30
        while True:  # until it answers wrong: then ask for what is compared, which is kept
            assert time.monotonic() < end
            probe = random.normal(size=(1, 4)).astype(np.float32)
            _, _, data = infer(server, "linear", "x", probe)
            if not np.allclose(data, linear(probe)[0], atol=1e-4):
                break
        kept = infer(server, "linear", "x", x)
        assert kept[1] == "gpu"
        assert not np.allclose(kept[2], right, atol=1e-4)
        assert infer(server, "linear", "x", x) == kept
        BOARD.suspect("gpu", Elsewhere())  # as another model does that loses it
        wait_for(lambda: counted(server, "edgeserve_fallback_total") != {})
        status, device, data = infer(server, "linear", "x", x)
        assert (status, device) == (200, "cpu")
        np.testing.assert_allclose(data, right, rtol=1e-5)


def test_a_request_that_takes_long_elsewhere_holds_nobody_up(tmp_path: Path) -> None:
    """Counting that far outlasts the watchdog; the next candidate takes seconds for it, in one thread of
    another kind than those that the device's requests run on."""
    results: list[tuple[int, str, Any]] = []

    def ask() -> None:
        results.append(infer(server, "count", "n", np.array([1_500_000])))

    with served(loop_bundle(tmp_path), watchdog=0.3, reopen=0.1, instances=1) as server:
        long = threading.Thread(target=ask)
        long.start()
        wait_for(lambda: counted(server, "edgeserve_recovered_total") != {})
        others = [infer(server, "count", "n", np.array([n])) for n in range(1, 20)]
        assert results == []
        assert [(device, data) for _, device, data in others] == [
            ("gpu", [float(n)]) for n in range(1, 20)
        ]
        long.join(60)
        assert results == [(200, "cpu", [1_500_000.0])]
        assert list(counted(server, "edgeserve_request_replayed_total").values()) == [1.0]
