"""A session in another process: the same answers, and how it ends. Real engine, real processes."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeserve.bundle import Bundle
from edgeserve.chain.failures import is_out_of_memory
from edgeserve.errors import DeviceLost, DeviceUnavailable, InferenceFailed, SourceError
from edgeserve.isolation import IsolatedSession, ProcessLimits, open_isolated, process
from edgeserve.runtimes import LoadOptions
from tests.bundles import linear, linear_bundle
from tests.isolation.networks import isolated_for, wide_bundle
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path_factory.mktemp("sessions")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return wide_bundle(tmp_path_factory.mktemp("wide"))


Start = Callable[..., IsolatedSession]


@pytest.fixture
def start() -> Iterator[Start]:
    """`isolated_for`, whose sessions end with the test."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: Any, **limits: Any) -> IsolatedSession:
            session = isolated_for(*arguments, **limits)
            stack.callback(session.close)
            return session

        yield started


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_it_answers_like_the_session_it_stands_for(start: Start, bundle: Bundle) -> None:
    session = start(bundle)
    assert (session.device, session.concurrency) == ("cpu", 1)
    assert session.inputs == bundle.manifest.interface.inputs
    assert session.placement().shares == {"cpu": 1.0}
    for count in (1, 3, 64):
        x = rows(count)
        np.testing.assert_allclose(session.run({"x": x})["y"], linear(x), rtol=1e-5, atol=1e-6)
    pid = session.pid
    assert pid != os.getpid()
    session.close()
    session.close()
    assert not psutil.pid_exists(pid)


def test_several_calls_at_once_keep_their_own_numbers(start: Start, bundle: Bundle) -> None:
    session = start(bundle, instances=3)

    def call(seed: int) -> bool:
        x = rows(1 + seed % 7, seed)
        return bool(np.allclose(session.run({"x": x})["y"], linear(x), rtol=1e-5, atol=1e-6))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(600)))
    session.close()


def test_large_answers_stay_what_they_were_while_others_come(start: Start, wide: Bundle) -> None:
    """They are lent from shared memory: it must not be used again too early."""
    session = start(wide)
    kept = []
    for seed, count in enumerate((1, 4, 1, 2, 16, 1, 1, 1)):  # growing, and shrinking again
        x = np.random.default_rng(seed).normal(
            size=(count, wide.manifest.interface.inputs[0].shape[1])
        )
        x = x.astype(np.float32)
        kept.append((x, session.run({"x": x})["y"]))
    for x, y in kept:
        np.testing.assert_array_equal(y, np.maximum(x, 0))
    session.close()
    for x, y in kept:
        np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_an_error_of_the_engine_comes_through_and_the_session_goes_on(
    start: Start, bundle: Bundle
) -> None:
    session = start(bundle)
    with pytest.raises(InferenceFailed, match="onnxruntime failed on cpu") as caught:
        session.run({"x": np.zeros((1, 5), np.float32)})
    assert "Expected: 4" in (caught.value.cause or "")
    assert not isinstance(caught.value, DeviceLost)
    np.testing.assert_allclose(session.run({"x": rows(1)})["y"], linear(rows(1)), rtol=1e-5)
    session.close()


def test_an_error_at_load_is_the_runtime_s_own(bundle: Bundle, tmp_path: Path) -> None:
    files = bundle.variant_files("onnx-fp32")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    import msgspec

    broken = msgspec.structs.replace(files, path=tmp_path / "broken.onnx")
    with pytest.raises(SourceError, match=r"onnxruntime cannot read .*broken\.onnx"):
        open_isolated(
            "onnxruntime", broken, "cpu", LoadOptions(), label="it", limits=ProcessLimits()
        )
    with pytest.raises(DeviceUnavailable, match="onnxruntime cannot open 'npu'") as caught:
        open_isolated(
            "onnxruntime", files, "npu", LoadOptions(), label="it", limits=ProcessLimits()
        )
    assert "this build offers" in (caught.value.cause or "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_death_names_its_signal(start: Start, bundle: Bundle, number: int) -> None:
    session = start(bundle)
    os.kill(session.pid, number)
    with pytest.raises(DeviceLost) as caught:
        session.run({"x": rows(1)})
    assert caught.value.reason == "crash"
    assert str(caught.value) == f"the process of it died of {signal.Signals(number).name}"
    session.close()


def test_a_death_quotes_what_the_process_wrote_last(
    start: Start, bundle: Bundle, tmp_path: Path
) -> None:
    session = start(bundle, "cpu:segv@2", state=tmp_path)
    session.run({"x": rows(1)})
    with pytest.raises(DeviceLost) as caught:
        session.run({"x": rows(1)})
    assert str(caught.value) == "the process of it died of SIGSEGV: injected: cpu:segv@2"
    session.close()


def test_a_death_is_told_while_nobody_calls(start: Start, bundle: Bundle) -> None:
    session = start(bundle)
    told: list[DeviceLost] = []
    session.when_lost(told.append)
    os.kill(session.pid, signal.SIGKILL)
    wait_for(lambda: bool(told))
    assert told[0].reason == "crash"
    session.close()
    assert len(told) == 1


def test_closing_is_no_loss(start: Start, bundle: Bundle) -> None:
    session = start(bundle)
    told: list[DeviceLost] = []
    session.when_lost(told.append)
    session.close()
    assert told == []


def test_calls_are_held_to_what_the_golden_run_took(
    start: Start, bundle: Bundle, tmp_path: Path
) -> None:
    session = start(bundle, "cpu:hang@3", state=tmp_path, call_s=0.3)
    session.run({"x": rows(1)})
    session.run({"x": rows(1)})
    assert session.call_limit_s == 60.0
    session.arm()
    assert session.call_limit_s == 0.3
    with pytest.raises(DeviceLost, match=r"did not finish a call within 0\.3 s") as caught:
        session.run({"x": rows(1)})
    assert caught.value.reason == "hang"
    assert not psutil.pid_exists(session.pid)
    session.close()


def test_a_device_that_does_not_open_in_time_is_given_up(
    start: Start, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnavailable, match=r"did not open it within 0\.7 s"):
        start(bundle, "cpu:slow-open=60@load", state=tmp_path, open_s=0.7)


def test_opening_stops_when_nobody_waits_any_more(bundle: Bundle, tmp_path: Path) -> None:
    before = {p.pid for p in psutil.Process().children()}
    began = time.monotonic()
    with pytest.raises(DeviceUnavailable):
        open_isolated(
            "onnxruntime", bundle.variant_files("onnx-fp32"), "cpu", LoadOptions(), label="it",
            limits=ProcessLimits(), faults=("cpu:hang@load",), fault_state=str(tmp_path),
            cancelled=lambda: time.monotonic() > began + 0.3,
        )  # fmt: skip
    assert {p.pid for p in psutil.Process().children()} <= before


def test_a_stopped_process_is_noticed_while_nobody_calls(
    start: Start, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(process, "_SILENCE_S", 0.5)
    session = start(bundle)
    told: list[DeviceLost] = []
    session.when_lost(told.append)
    os.kill(session.pid, signal.SIGSTOP)
    wait_for(lambda: bool(told))
    assert told[0].reason == "hang"
    assert "has not answered for 0.5 s" in str(told[0])
    session.close()


@pytest.mark.slow
def test_allocations_beyond_the_cap_fail_with_the_engine_s_message(
    start: Start, wide: Bundle
) -> None:
    session = start(wide, memory_bytes=400e6, call_s=60.0)
    width = wide.manifest.interface.inputs[0].shape[1]
    assert isinstance(width, int)
    with pytest.raises(InferenceFailed) as caught:
        session.run({"x": np.ones((900, width), np.float32)})  # 542 MB more for the output
    # Rarely the watch on resident memory looks in between, and is first.
    lost = isinstance(caught.value, DeviceLost) and caught.value.reason == "memory"
    assert lost or is_out_of_memory(caught.value), caught.value
    session.close()


def test_a_process_that_has_grown_past_the_cap_is_ended(
    start: Start, wide: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped memory is not data: only looking at the process tells."""
    monkeypatch.setattr(process, "HEARTBEAT_S", 0.1)
    session = start(wide, memory_bytes=300e6)
    told: list[DeviceLost] = []
    session.when_lost(told.append)
    width = wide.manifest.interface.inputs[0].shape[1]
    assert isinstance(width, int)
    with contextlib.suppress(InferenceFailed):
        session.run({"x": np.ones((400, width), np.float32)})  # 241 MB shared, twice
    wait_for(lambda: bool(told))
    assert told[0].reason == "memory"
    assert "the limit is 300 MB" in str(told[0])
    session.close()


def test_it_ends_with_its_owner(bundle: Bundle, tmp_path: Path) -> None:
    """However that ends: here it kills itself, while the session hangs in a call."""
    script = f"""
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from edgeserve.bundle import Bundle
from tests.isolation.networks import isolated_for
session = isolated_for(Bundle.open({str(bundle.path)!r}), "cpu:hang@1", state=Path({str(tmp_path)!r}))
print(session.pid, flush=True)
threading.Thread(target=lambda: session.run({{"x": np.ones((1, 4), np.float32)}})).start()
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    pid = int(done.stdout)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_signals_to_the_whole_group_leave_it_alone(start: Start, bundle: Bundle) -> None:
    """Ctrl-C and a stopping service reach every process: the owner drains first."""
    session = start(bundle)
    os.kill(session.pid, signal.SIGINT)
    os.kill(session.pid, signal.SIGTERM)
    np.testing.assert_allclose(session.run({"x": rows(1)})["y"], linear(rows(1)), rtol=1e-5)
    session.close()


def test_opening_and_ending_leave_nothing_behind(bundle: Bundle) -> None:
    me = psutil.Process()
    isolated_for(bundle).close()  # what Python itself keeps from now on

    def held() -> tuple[int, int, int]:
        return me.num_fds(), len(me.children()), threading.active_count()

    gc.collect()  # what other tests have left
    before = held()
    for turn in range(6):
        session = isolated_for(bundle)
        session.run({"x": rows(3)})
        if turn % 2:
            os.kill(session.pid, signal.SIGKILL)
        session.close()
    del session
    assert held() == before
