"""Keys that come and go while the server runs: on SIGHUP, and with `watch`; without losing a request."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from edgeserve.serve.settings.server import Settings
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.slow import slow_bundle
from tests.waiting import wait_for

OLD, NEW, CONTROL = "old-key-0123456789", "new-key-0123456789", "control-key-0123456789"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"infer {OLD}\ncontrol {CONTROL}\n")
    return file


@pytest.fixture
def settings(tmp_path: Path, key_file: Path) -> Settings:
    """`slow` waits for company for a while."""
    return Settings(
        bundle=str(slow_bundle(tmp_path)), http_port=0, grpc_port=0, threads=1, batch_delay=0.7,
        keys=str(key_file), model_control=True,
    )  # fmt: skip


def asking(key: str) -> bytes:
    return post(infer_body([[1, 2, 3, 4]]), "/v2/models/slow/infer", f"X-Api-Key: {key}")


def looking(key: str) -> bytes:
    return f"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n\r\n".encode()


def loading(key: str) -> bytes:
    head = f"POST /v2/repository/models/slow/load HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}"
    return f"{head}\r\nContent-Length: 0\r\n\r\n".encode()


def status(client: RawClient, request: bytes) -> int:
    client.send(request)
    return client.response()[0]


def works(server: Background, key: str) -> bool:
    with RawClient(server.url) as client:
        return status(client, looking(key)) == 200


def test_new_keys_work_and_old_ones_stop_on_open_connections_too(
    settings: Settings, key_file: Path
) -> None:
    with Background(settings) as server, RawClient(server.url) as kept, RawClient(server.url) as at:
        assert [status(kept, looking(OLD)) for _ in range(3)] == [200] * 3
        assert status(kept, looking(NEW)) == 401
        assert status(kept, looking(OLD)) == 200
        at.send(asking(OLD))  # handled when the key goes
        key_file.write_text(f"infer {NEW}\n")
        server.hang_up()
        wait_for(lambda: works(server, NEW))
        assert status(kept, looking(OLD)) == 401
        assert status(kept, looking(OLD)) == 401
        assert status(kept, looking(NEW)) == 200
        assert status(kept, loading(CONTROL)) == 401
        assert status(kept, loading(NEW)) == 403
        assert at.response()[0] == 200
        assert status(at, asking(OLD)) == 401


def test_a_body_that_arrives_while_its_key_goes_is_not_run(
    settings: Settings, key_file: Path
) -> None:
    with Background(settings) as server, RawClient(server.url) as client:
        assert status(client, asking(OLD)) == 200
        client.send(asking(OLD)[:-5])
        time.sleep(0.1)
        key_file.write_text(f"infer {NEW}\n")
        server.hang_up()
        wait_for(lambda: works(server, NEW))
        client.send(asking(OLD)[-5:])
        assert client.response()[0] == 401


def _message() -> bytes:
    request = messages.ModelInferRequest(model_name="slow", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return bytes(request.SerializeToString())


def _stream(channel: grpc.Channel, key: str) -> tuple[queue.SimpleQueue[bytes | None], grpc.Call]:
    sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def requests() -> Iterator[bytes]:
        while (message := sent.get()) is not None:
            yield message

    call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
        requests(), metadata=[("x-api-key", key)]
    )
    return sent, call


@pytest.mark.slow
def test_calls_and_streams_over_grpc(settings: Settings, key_file: Path) -> None:
    with Background(settings) as server:
        assert server.started.grpc is not None
        with grpc.insecure_channel(server.started.grpc) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            going = infer.future(_message(), metadata=[("x-api-key", OLD)])
            (old, ends), (staying, goes_on) = (_stream(channel, k) for k in (OLD, CONTROL))
            for sent, call in ((old, ends), (staying, goes_on)):
                sent.put(_message())
                next(call)
            old.put(_message())  # handled when the key goes
            time.sleep(0.1)
            key_file.write_text(f"infer {NEW}\ncontrol {CONTROL}\n")
            server.hang_up()
            wait_for(lambda: works(server, NEW))
            assert messages.ModelStreamInferResponse.FromString(next(ends)).error_message == ""
            with pytest.raises(grpc.RpcError, match="the key is not known"):
                next(ends)
            assert ends.code() is grpc.StatusCode.UNAUTHENTICATED
            staying.put(_message())
            assert messages.ModelStreamInferResponse.FromString(next(goes_on)).error_message == ""
            for sent in (old, staying):
                sent.put(None)
            assert going.code() is grpc.StatusCode.OK
            late = infer.future(_message(), metadata=[("x-api-key", OLD)])
            assert late.code() is grpc.StatusCode.UNAUTHENTICATED
            now = infer.future(_message(), metadata=[("x-api-key", NEW)])
            assert now.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("text", ["", f"infer {NEW}\nadmin {OLD}\n", "infer short\n"])
def test_a_file_that_holds_no_good_keys_changes_nothing(
    settings: Settings, key_file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Background(settings) as server:
        key_file.write_text(text)
        server.hang_up()
        wait_for(lambda: "the settings stay as they are" in caplog.text)
        assert works(server, OLD)
        assert not works(server, NEW)


def test_a_key_goes_though_the_settings_cannot_be_followed(
    settings: Settings, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reread() -> Settings:
        changed = Settings(bundle=settings.bundle, queue=0)
        changed.check()
        return changed

    with Background(settings, reread) as server:
        key_file.write_text(f"infer {NEW}\n")
        server.hang_up()
        wait_for(lambda: works(server, NEW))
        assert not works(server, OLD)
        wait_for(lambda: "queue 0 is not a valid number" in caplog.text)


def test_watching_follows_keys_without_a_signal_and_logs_none_of_them(
    bundle: Path, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(bundle=str(bundle), http_port=0, keys=str(key_file), watch=0.05)
    with caplog.at_level(logging.DEBUG), Background(settings) as server:
        key_file.write_text(f"infer {NEW}\n")
        wait_for(lambda: works(server, NEW))
        assert not works(server, OLD)
    assert "the keys have changed: Keys(1 infer, 0 control)" in caplog.text
    assert not any(key in caplog.text for key in (OLD, NEW, CONTROL))
