"""Calls that are refused are counted by code and reason and have a line; strangers keep nobody's threads busy."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from edgeserve.serve.grpc import health
from edgeserve.serve.process import logs
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.grpc.conftest import address, settings
from tests.serve.http.test_refusals import KEY, counted
from tests.waiting import wait_for

LEAVE = (("x-api-key", KEY),)
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def locked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"infer {KEY}\n")
    with Background(settings(bundle, keys=str(keys), access_log=True)) as running:
        yield running
    logs.set_up("text", access=False)


def infer(name: str = "linear", size: int = 16) -> bytes:
    message = messages.ModelInferRequest(model_name=name, raw_input_contents=[bytes(size)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return bytes(message.SerializeToString())


INFER = f"/{SERVICE}/ModelInfer"
REFUSED = [
    (INFER, infer(), (), CODE.UNAUTHENTICATED, "unauthenticated"),
    (INFER, infer(), (("authorization", "Bearer " + "x" * 32),), CODE.UNAUTHENTICATED, "unauthenticated"),
    (INFER, infer("nope"), LEAVE, CODE.NOT_FOUND, "unknown_model"),
    (INFER, infer(size=15), LEAVE, CODE.INVALID_ARGUMENT, "invalid"),
    (INFER, b"\xff", LEAVE, CODE.INVALID_ARGUMENT, "invalid"),
    (f"/{SERVICE}/ModelMetadata", b"\xff", LEAVE, CODE.INVALID_ARGUMENT, "malformed"),
    (f"/{SERVICE}/RepositoryModelLoad", b"", LEAVE, CODE.PERMISSION_DENIED, "forbidden"),
    (f"/{SERVICE}/Nothing", b"", LEAVE, CODE.UNIMPLEMENTED, "unknown_method"),
    (f"/{health.NAME}/Check", b"\x0a\x01x", (), CODE.NOT_FOUND, "unknown_model"),
]  # fmt: skip


def test_each_is_counted_once_and_has_a_line(
    locked: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgeserve.access")
    wanted: Counter[tuple[str, ...]] = Counter()
    with grpc.insecure_channel(address(locked)) as channel:
        for method, message, metadata, code, reason in REFUSED:
            call = channel.unary_unary(method).future(message, metadata=metadata)
            assert call.code() is code, method
            wanted[code.name, reason] += 1
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = list(stream(iter([infer(size=15), infer()]), metadata=LEAVE))
        assert len(answers) == 2
        wanted["INVALID_ARGUMENT", "invalid"] += 1
        assert channel.unary_unary(INFER)(infer(), metadata=LEAVE)
    assert counted(locked, "edgeserve_grpc_refused_total") == wanted
    lines = [m for m in caplog.messages if "protocol=grpc" in m]
    assert len(lines) == sum(wanted.values())
    for line, (method, _, _, code, reason) in zip(lines, REFUSED, strict=False):
        shown = f"method=POST path={method} status={code.name} result={reason} peer=127.0.0.1"
        assert shown in line


@pytest.mark.slow
def test_calls_whose_message_never_comes_keep_nobody_waiting(locked: Background) -> None:
    """Those that anybody may make, and those of key holders that are about the server."""
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(60)
        yield from ()

    with grpc.insecure_channel(address(locked)) as strangers:
        stuck = []
        for method in (f"/{health.NAME}/Check", f"/{health.NAME}/Watch"):
            open_call = strangers.stream_stream(method)
            stuck += [open_call(silent()) for _ in range(15)]
        (live,) = strangers.stream_stream(f"/{SERVICE}/ServerLive")(silent())
        assert messages.ServerLiveResponse.FromString(live).live
        refused = strangers.stream_stream(INFER)
        stuck += [refused(silent()) for _ in range(20)]
        with grpc.insecure_channel(address(locked)) as channel:
            time.sleep(0.3)
            began = time.monotonic()
            call = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            assert call(b"", metadata=LEAVE, timeout=10)
            assert channel.unary_unary(INFER)(infer(), metadata=LEAVE, timeout=10)
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            assert len(list(stream(iter([infer()]), metadata=LEAVE, timeout=10))) == 1
            assert time.monotonic() - began < 3
        wait_for(lambda: all(call.done() for call in stuck), 20)
        assert {c.code() for c in stuck} == {CODE.CANCELLED, CODE.UNAUTHENTICATED}
        never.set()
        check = strangers.unary_unary(f"/{health.NAME}/Check")
        assert health_pb2.HealthCheckResponse.FromString(check(b"", timeout=10)).status == 1


def test_watchers_take_no_streams_from_those_who_infer(locked: Background) -> None:
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address(locked)))
        watchers = []
        for _ in range(40):
            watcher = channel.unary_stream(f"/{health.NAME}/Watch")(b"")
            stack.callback(watcher.cancel)
            watchers.append(watcher)
        wait_for(lambda: sum(w.done() for w in watchers) == 8)
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        assert len(list(stream(iter([infer()]), metadata=LEAVE, timeout=10))) == 1
