"""`edgeserve run --workers`: several processes that answer as one, and what becomes of those that die."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from edgeserve.wire import SERVICE, messages
from tests.bundles import linear_bundle
from tests.cli.test_run import NPU_THEN_CPU, Client, Process, get, run, serving
from tests.cli.test_run_models import Asking, body
from tests.serve.conftest import RawClient, post
from tests.serve.repositories import shifted_bundle, version
from tests.serve.slow import slow_bundle
from tests.waiting import wait_for

TWO = ("--http-port", "0", "--workers", "2")
OWN_CHANNEL = [("grpc.use_local_subchannel_pool", 1)]


def workers(process: Process) -> list[psutil.Process]:
    children = psutil.Process(process.popen.pid).children()
    return [c for c in children if c.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def client_of_each(process: Process) -> Iterator[dict[int, RawClient]]:
    """A connection to each of the workers, by their process ids: the kernel chooses whose it becomes."""
    port = int(process.url.rpartition(":")[2])
    with ExitStack() as stack:
        found: dict[int, RawClient] = {}
        pids = {w.pid for w in workers(process)}
        for _ in range(200):
            client = stack.enter_context(RawClient(process.url))
            ask_on(client, "GET", "/v2/health/live")
            mine = client.socket.getsockname()[1]
            for pid in pids:
                for c in psutil.Process(pid).net_connections("tcp"):
                    if c.raddr and (c.laddr.port, c.raddr.port) == (port, mine):
                        found.setdefault(pid, client)
            if found.keys() == pids:
                break
        assert found.keys() == pids
        yield found


def ask_on(client: RawClient, method: str, path: str, data: bytes = b"") -> tuple[int, Any]:
    length = f"Content-Length: {len(data)}\r\n" if method == "POST" else ""
    client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + data)
    status, _, answer = client.response()
    return status, json.loads(answer) if answer else None


def change(process: Process, path: str, **document: object) -> tuple[int, Any]:
    with RawClient(process.url) as client:
        return ask_on(client, "POST", path, json.dumps(document).encode())


def metrics(process: Process) -> str:
    with RawClient(process.url) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        return client.response()[2].decode()


def answered(process: Process) -> int:
    """What the statistics say, of whichever worker the connection becomes."""
    status, document = get(process.url, "/v2/models/m/stats")
    assert status == 200
    (one,) = document["model_stats"]  # type: ignore[misc]
    return int(one["inference_stats"]["success"]["count"])


def ready(process: Process) -> bool:
    return get(process.url, "/v2/health/ready")[0] == 200


def test_whoever_is_asked_tells_of_all(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, "--metrics-compat", "triton", cwd=tmp_path) as process:
        clients = [Asking(process.url, "m", {1.0}) for _ in range(8)]
        seen = [answered(process) for _ in range(60)]  # of this worker and that, under load
        wait_for(lambda: sum(c.answers for c in clients) > 500)
        for client in clients:
            client.stop()
        assert seen == sorted(seen)
        assert [c.wrong for c in clients] == [[]] * 8
        total = sum(c.answers for c in clients)
        with client_of_each(process) as each:
            told = [
                ask_on(c, "GET", "/v2/models/stats")[1]["model_stats"][0] for c in each.values()
            ]
        assert [t["inference_stats"]["success"]["count"] for t in told] == [total] * 2
        assert told[0] == told[1]
        text = metrics(process)
        assert f'edgeserve_requests_total{{model="m",version="1"}} {total}.0' in text
        assert f'nv_inference_request_success{{model="m",version="1"}} {total}.0' in text
        assert "edgeserve_workers 2.0" in text
        assert "# TYPE nv_inference_request_success counter" in text
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
            labels = f'model="m",reason="{reason}",version="1"'
            assert f"nv_inference_request_failure{{{labels}}} 0.0" in text
        _, document = get(process.url, "/v2/health/ready")
        assert document["workers"] == [{"worker": 1, "ready": True}, {"worker": 2, "ready": True}]
        shown = subprocess.run(
            [sys.executable, "-m", "edgeserve", "status", process.url],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "2 of 2 workers are ready" in shown.stdout
        assert str(total) in shown.stdout
        assert "2 worker processes share these ports" in process.printed
        there = workers(process)
        assert process.stop() == 0
        assert not any(w.is_running() for w in there)


@pytest.mark.slow
def test_one_that_does_not_answer_is_named_and_its_counts_stay(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process, client_of_each(process) as each:
        (stopped, client), (_, other) = each.items()
        for c in (client, other, client):
            c.send(post(body(0), "/v2/models/m/infer"))
            assert c.response()[0] == 200
        assert answered(process) == 3
        os.kill(stopped, signal.SIGSTOP)
        try:
            status, document = ask_on(other, "GET", "/v2/health/ready")
            assert status == 503
            (silent,) = [w for w in document["workers"] if not w["ready"]]
            assert "did not answer" in silent["reason"]
            assert ask_on(other, "GET", "/v2/models/m/ready")[0] == 503
            assert ask_on(other, "GET", "/v2/health/live")[0] == 200
            other.send(b"GET /v2/models/m/stats HTTP/1.1\r\nHost: t\r\n\r\n")
            _, headers, answer = other.response()
            assert headers["x-edgeserve-silent-workers"] == str(silent["worker"])
            assert json.loads(answer)["model_stats"][0]["inference_count"] == 3
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_for(lambda: ask_on(other, "GET", "/v2/health/ready")[0] == 200)


def test_a_killed_worker_takes_only_what_it_has_and_another_comes(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process, client_of_each(process) as each:
        (killed, hit), (_, spared) = each.items()
        clients = [Asking(process.url, "m", {1.0}) for _ in range(6)]
        hit.send(post(body(0), "/v2/models/m/infer"))
        assert hit.response()[0] == 200
        before = answered(process)
        psutil.Process(killed).kill()
        for _ in range(100):
            spared.send(post(body(0), "/v2/models/m/infer"))
            assert spared.response()[0] == 200
        assert hit.is_closed()
        wait_for(lambda: len(workers(process)) == 2 and ready(process))
        # Those that were the dead one's lost their connection, and nobody got anything wrong.
        alive = [c for c in clients if c.is_alive()]
        for client in alive:
            client.stop()
        assert [c.wrong for c in clients] == [[]] * 6
        assert answered(process) >= before  # what the dead one had counted stays
        text = metrics(process)
        assert "edgeserve_worker_ends_total 1.0" in text
        assert "edgeserve_workers 2.0" in text
        assert process.stop() == 0
        assert re.search(r"worker \d ended with -9; another one is started", process.printed)


@pytest.mark.slow  # a worker may be busy for half a minute
def test_one_that_hangs_is_replaced(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process:
        hung = workers(process)[0]
        hung.suspend()
        end = time.monotonic() + 60
        while hung.is_running():
            assert time.monotonic() < end
            time.sleep(0.5)
        wait_for(lambda: len(workers(process)) == 2 and ready(process))
        assert process.stop() == 0
        assert re.search(r"worker \d has not answered for 30 s and is ended", process.printed)


@pytest.mark.parametrize("model", ["linear", "slow"])
def test_sigterm_under_load_loses_nothing(tmp_path: Path, model: str) -> None:
    (linear_bundle if model == "linear" else slow_bundle)(tmp_path)
    with serving(f"{model}.edge", *TWO, cwd=tmp_path) as process:
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


def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, "--grpc-port", "0", cwd=tmp_path) as process:
        there = workers(process)
        assert len(there) == 2
        process.popen.kill()
        psutil.wait_procs(there, timeout=20)
        assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in there)


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port", "--control-port"])
def test_a_port_in_use_is_named(tmp_path: Path, flag: str) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"--http-port": "0", "--grpc-port": "0", flag: str(port)}
        arguments = [word for pair in ports.items() for word in pair]
        done = run("m.edge", "--workers", "2", *arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert f"{flag} 0 picks a free one" in done.stderr


def test_they_tell_what_is_wrong_as_one_process_does(tmp_path: Path) -> None:
    done = run("none.edge", *TWO, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: none.edge does not exist" in done.stderr


@pytest.mark.slow
def test_accelerators_are_for_one_process(tmp_path: Path) -> None:
    linear_bundle(tmp_path, "npu", NPU_THEN_CPU)
    done = run("npu.edge", *TWO, cwd=tmp_path)
    assert done.returncode == 2
    assert "may be opened on npu, which 2 workers would do side by side" in done.stderr
    assert "--device cpu, or --workers 1" in done.stderr
    with serving("npu.edge", *TWO, "--device", "cpu", cwd=tmp_path) as process:
        assert ready(process)
        assert process.stop() == 0


# gRPC


def infer_request(value: float) -> messages.ModelInferRequest:  # type: ignore[name-defined]
    request = messages.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.full(4, value, np.float32).tobytes())
    return request


class Calling(threading.Thread):
    """ModelInfer on a channel of its own until it is told to stop; `lost` are calls that failed."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.answers, self.wrong, self.lost = 0, 0, []  # type: ignore[var-annotated]
        self._address, self._ending = address, threading.Event()
        self.start()

    def run(self) -> None:
        with grpc.insecure_channel(self._address, OWN_CHANNEL) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while not self._ending.is_set() and len(self.lost) < 10:
                try:
                    sent = infer_request(2).SerializeToString()
                    data = infer(sent, timeout=20, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.lost.append(error.code())
                    continue
                answer = messages.ModelInferResponse.FromString(data)
                self.answers += 1
                self.wrong += np.frombuffer(answer.raw_output_contents[0], np.float32)[0] != 3

    def stop(self) -> None:
        self._ending.set()
        self.join(30)


def call(address: str, method: str, request: Any, answer: Any) -> Any:
    with grpc.insecure_channel(address, OWN_CHANNEL) as channel:
        data = channel.unary_unary(f"/{SERVICE}/{method}")(request.SerializeToString(), timeout=30)
    return answer.FromString(data)


def grpc_address(process: Process) -> str:
    found = re.search(r"gRPC: (\S+:\d+)", process.printed)
    assert found, process.printed
    return found[1]


def test_grpc_is_shared_and_outlives_a_killed_worker(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, "--grpc-port", "0", cwd=tmp_path) as process:
        address = grpc_address(process)
        clients = [Calling(address) for _ in range(6)]
        wait_for(lambda: all(c.answers > 20 for c in clients))
        of = messages.ModelStatisticsRequest(name="m")

        def counted() -> int:
            told = call(address, "ModelStatistics", of, messages.ModelStatisticsResponse)
            return int(told.model_stats[0].inference_stats.success.count)

        seen = [counted() for _ in range(20)]
        assert seen == sorted(seen)
        killed = workers(process)[0]
        killed.kill()
        wait_for(lambda: len(workers(process)) == 2 and ready(process))
        before = [c.answers for c in clients]
        wait_for(lambda: all(c.answers > b + 20 for c, b in zip(clients, before, strict=True)))
        for client in clients:
            client.stop()
        assert sum(c.wrong for c in clients) == 0
        # A call in the dead one's hands fails, and tells the client to try again.
        assert {code for c in clients for code in c.lost} <= {grpc.StatusCode.UNAVAILABLE}
        assert all(len(c.lost) <= 2 for c in clients)
        assert counted() >= seen[-1]
        ask_ready = messages.ServerReadyRequest()
        assert call(address, "ServerReady", ask_ready, messages.ServerReadyResponse).ready
        asked = messages.ModelReadyRequest(name="m")
        assert call(address, "ModelReady", asked, messages.ModelReadyResponse).ready
        assert process.stop() == 0


# changes


def test_models_come_and_go_everywhere(tmp_path: Path) -> None:
    models = tmp_path / "models"
    version(models, "m", 1, 1)
    shifted_bundle(models, "other", 5)
    arguments = ("models", *TWO, "--grpc-port", "0", "--model-control", "--control-port", "0")
    with serving(*arguments, cwd=tmp_path) as process:
        found = re.search(r"control plane at (\S+)", process.printed)
        assert found
        with RawClient(found[1]) as control:

            def on_control(action: str, name: str = "m") -> tuple[int, Any]:
                return ask_on(control, "POST", f"/v2/repository/models/{name}/{action}")

            version(models, "m", 2, 2)
            assert on_control("load") == (200, None)
            with client_of_each(process) as each:
                assert [_add(c, "m") for c in each.values()] == [2, 2]
                assert on_control("unload") == (200, None)
                assert [_add(c, "m") for c in each.values()] == [503, 503]
                assert on_control("load", "nobody")[0] == 404
                assert [_add(c, "other") for c in each.values()] == [5, 5]
        # One that starts later knows.
        killed = workers(process)[0]
        killed.kill()
        wait_for(lambda: killed not in workers(process) and len(workers(process)) == 2)
        wait_for(lambda: ready(process))
        with client_of_each(process) as each:
            assert [_add(c, "m") for c in each.values()] == [503, 503]
            index = [ask_on(c, "POST", "/v2/repository/index")[1] for c in each.values()]
            assert index[0] == index[1]
            assert {e["name"]: e["state"] for e in index[0]} == {
                "m": "UNAVAILABLE", "other": "READY",
            }  # fmt: skip
            load = messages.RepositoryModelLoadRequest(model_name="m")
            with pytest.raises(grpc.RpcError, match=r"UNAUTHENTICATED|PERMISSION_DENIED"):
                call(grpc_address(process), "RepositoryModelLoad", load, None)
            assert [_add(c, "m") for c in each.values()] == [503, 503]
        assert process.stop() == 0


def _add(client: RawClient, model: str) -> float:
    """What the model adds, or the status that says why not."""
    client.send(post(body(0), f"/v2/models/{model}/infer"))
    status, _, answer = client.response()
    return float(json.loads(answer)["outputs"][0]["data"][0]) if status == 200 else status


def test_what_does_not_load_in_all_leaves_all_as_they_were(tmp_path: Path) -> None:
    """The model on disk is spoilt: the error is told, and every worker serves what it had."""
    models = tmp_path / "models"
    bundle = shifted_bundle(models, "m", 1)
    arguments = ("models", *TWO, "--grpc-port", "0", "--model-control")
    with serving(*arguments, cwd=tmp_path) as process:
        (bundle / "onnx-fp32" / "model.onnx").write_bytes(b"x")
        status, told = change(process, "/v2/repository/models/m/load")
        assert status == 500
        assert "bundle was written with" in told["error"]
        with client_of_each(process) as each:
            assert [_add(c, "m") for c in each.values()] == [1, 1]
            (one,) = ask_on(next(iter(each.values())), "POST", "/v2/repository/index")[1]
            assert one["state"] == "READY"
            assert "bundle was written with" in one["reason"]
        shutil.rmtree(bundle)
        shifted_bundle(models, "m", 3)
        load = messages.RepositoryModelLoadRequest(model_name="m")
        call(
            grpc_address(process), "RepositoryModelLoad", load, messages.RepositoryModelLoadResponse
        )
        with client_of_each(process) as each:
            assert [_add(c, "m") for c in each.values()] == [3, 3]
        assert process.stop() == 0


@pytest.mark.slow
def test_a_model_that_ends_a_worker_ends_no_other(tmp_path: Path) -> None:
    """The first worker opens it alone, and the one in its place leaves it alone."""
    models = tmp_path / "models"
    shifted_bundle(models, "m", 1)
    with serving("models", *TWO, "--model-control", cwd=tmp_path) as process:
        version(models, "slow", 1, 7, work=1_500)
        first = min(workers(process), key=lambda w: w.create_time())
        told: list[tuple[int, Any]] = []
        with client_of_each(process) as each, client_of_each(process) as more:
            (asked,) = (client for pid, client in each.items() if pid != first.pid)
            (other,) = (client for pid, client in more.items() if pid != first.pid)
            path = "/v2/repository/models/slow/load"
            asking = threading.Thread(target=lambda: told.append(ask_on(asked, "POST", path)))
            asking.start()

            def slow() -> dict[str, str]:
                _, index = ask_on(other, "POST", "/v2/repository/index")
                return next((e for e in index if e["name"] == "slow"), {})

            wait_for(lambda: slow().get("state") == "LOADING")
            first.kill()
            asking.join(30)
            assert told[0][0] == 503
            assert "worker 1 ended while it opened it" in told[0][1]["error"]
            assert _add(other, "m") == 1
            wait_for(lambda: first not in workers(process) and len(workers(process)) == 2)
            wait_for(lambda: slow()["reason"] != "not every worker has it")
            assert "worker 1 ended while it opened it" in slow()["reason"]
            # Whoever asks for it again has it tried again.
            assert ask_on(other, "POST", path) == (200, None)
        with client_of_each(process) as each:
            assert [round(_add(c, "slow")) for c in each.values()] == [7, 7]
            assert [_add(c, "m") for c in each.values()] == [1, 1]
        assert ready(process)
        assert process.stop() == 0


@pytest.mark.parametrize("by", ["signal", "watch"])
def test_files_are_followed_everywhere_without_losing_a_request(tmp_path: Path, by: str) -> None:
    models = tmp_path / "models"
    version(models, "m", 1, 1)
    (tmp_path / "serve.toml").write_text('repository = "models"\nhttp_port = 0\nworkers = 2\n')
    watch = ("--watch", "0.1") if by == "watch" else ()
    with serving("--config", "serve.toml", *watch, cwd=tmp_path) as process:
        clients = [Asking(process.url, "m", {1.0, 2.0, 3.0}) for _ in range(4)]

        def follow() -> None:
            if by == "signal":
                process.popen.send_signal(signal.SIGHUP)

        with client_of_each(process) as each:
            for number in (2, 3):
                version(models, "m", number, number)
                follow()
                wait_for(lambda n=number: [_add(c, "m") for c in each.values()] == [n, n])  # type: ignore[misc]
            # One that cannot be loaded leaves what serves as it is.
            broken = version(models, "m", 4, 4)
            (broken / "m.edge").rename(broken / "other")
            follow()
            wait_for(lambda: "holds no bundle" in get_index(process, "4"))
            assert [_add(c, "m") for c in each.values()] == [3, 3]
            shutil.rmtree(broken)
            (tmp_path / "serve.toml").write_text(
                'repository = "models"\nhttp_port = 1\nworkers = 3\n[[model]]\nname = "m"\nversions = "all"\n'
            )
            follow()
            wait_for(
                lambda: all(
                    ask_on(c, "GET", "/v2/models/m")[1].get("versions") == ["1", "2", "3"]
                    for c in each.values()
                )
            )
        for client in clients:
            client.stop()
        assert [c.wrong for c in clients] == [[]] * 4
        assert process.stop() == 0
        assert "needs a restart to take effect: http_port, workers" in process.printed


def get_index(process: Process, wanted: str) -> str:
    """Why a version of `m` is not served."""
    _, index = change(process, "/v2/repository/index")
    return next((e["reason"] for e in index if e["version"] == wanted), "")


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(f"edgeserve-test-{uuid.uuid4().hex}", create=True, size=32)
    made.buf[:16] = np.arange(4, dtype=np.float32).tobytes()
    yield made
    made.close()
    made.unlink()


@pytest.mark.slow
def test_shared_memory_is_known_to_all(tmp_path: Path, segment: Segment) -> None:
    shifted_bundle(tmp_path, "m", 1)
    arguments = ("m.edge", *TWO, "--grpc-port", "0", "--shared-memory", "edgeserve-test-")
    with serving(*arguments, cwd=tmp_path) as process:
        region = "/v2/systemsharedmemory/region/in"
        wanted = {"key": segment.name, "byte_size": 32}
        assert change(process, f"{region}/register", **wanted) == (200, None)
        status, told = change(process, f"{region}/register", **wanted)
        assert (status, "is registered already" in told["error"]) == (400, True)
        spoilt = wanted | {"byte_size": 64}
        assert change(process, "/v2/systemsharedmemory/region/b/register", **spoilt)[0] == 400
        killed = workers(process)[0]
        with client_of_each(process) as each:
            for client in each.values():
                assert _shared(client) == [1, 2, 3, 4]
                _, regions = ask_on(client, "GET", "/v2/systemsharedmemory/status")
                assert [r["name"] for r in regions] == ["in"]
            killed.kill()
        wait_for(lambda: killed not in workers(process) and len(workers(process)) == 2)
        wait_for(lambda: ready(process))
        with client_of_each(process) as each:
            assert [_shared(c) for c in each.values()] == [[1, 2, 3, 4]] * 2
            request = messages.SystemSharedMemoryUnregisterRequest(name="in")
            answer = messages.SystemSharedMemoryUnregisterResponse
            call(grpc_address(process), "SystemSharedMemoryUnregister", request, answer)
            for client in each.values():
                assert ask_on(client, "GET", "/v2/systemsharedmemory/status") == (200, [])
        assert process.stop() == 0


def _shared(client: RawClient) -> list[float]:
    """The answer to an input that is in the region."""
    where = {"shared_memory_region": "in", "shared_memory_byte_size": 16}
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": where}
    data = json.dumps({"inputs": [entry]}).encode()
    status, document = ask_on(client, "POST", "/v2/models/m/infer", data)
    assert status == 200, document
    return [float(v) for v in document["outputs"][0]["data"]]


@pytest.mark.slow
def test_keys_that_go_stop_working_in_all(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    old, new = "old-key-0123456789", "new-key-0123456789"
    (tmp_path / "keys").write_text(f"infer {old}\n")
    with serving("m.edge", *TWO, "--keys", "keys", cwd=tmp_path) as process:

        def statuses(key: str) -> list[int]:
            asked = f"GET /v2 HTTP/1.1\r\nHost: t\r\nX-Api-Key: {key}\r\n\r\n".encode()
            found = []
            for client in each.values():
                client.send(asked)
                found.append(client.response()[0])
            return found

        with client_of_each(process) as each:
            assert (statuses(old), statuses(new)) == ([200, 200], [401, 401])
            (tmp_path / "keys").write_text(f"infer {new}\n")
            process.popen.send_signal(signal.SIGHUP)
            wait_for(lambda: statuses(new) == [200, 200])
            assert statuses(old) == [401, 401]
        assert process.stop() == 0
        assert "settings and models are read again" in process.printed
        assert "needs a restart" not in process.printed


def test_the_status_page_is_of_all(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process:
        wait_for(lambda: ready(process))
        with client_of_each(process) as each:
            for client in each.values():
                assert _add(client, "m") == 1
            for client in each.values():
                client.send(b"GET /status HTTP/1.1\r\nHost: t\r\nAccept: application/json\r\n\r\n")
                document = json.loads(client.response()[2])
                (model,) = document["models"]
                assert (model["answered"], model["ready"], model["queue"]) == (2, True, 2 * 1024)
                assert [(w["worker"], w["ready"]) for w in document["workers"]] == [
                    (1, True), (2, True),
                ]  # fmt: skip
                assert document["ready"] is True
                assert document["process"] in each
            client.send(b"GET /status HTTP/1.1\r\nHost: t\r\nAccept: text/html\r\n\r\n")
            page = client.response()[2].decode()
            assert "in 2 workers" in page
        assert process.stop() == 0


@pytest.mark.slow
def test_the_memory_budget_is_shared(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shifted_bundle(tmp_path / "models", f"m{number}", number, pad_kb=400)
    with serving("models", *TWO, "--memory-budget", "4MB", cwd=tmp_path) as process:
        assert "loaded on demand" in process.printed
        assert ready(process)
        with client_of_each(process) as each:
            for client in each.values():
                assert [_add(client, f"m{n}") for n in (1, 2, 3, 1)] == [1, 2, 3, 1]
        assert process.stop() == 0
