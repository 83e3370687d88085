"""What a chain does when its device fails. The GPU is played by the CPU engine in a process of its own;
everything else is real: processes that die, pauses, golden checks."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain import Chain, ChainOptions
from edgeserve.chain.device_health import device_key
from edgeserve.errors import (
    DeviceLost,
    DeviceUnavailable,
    InferenceFailed,
    ModelUnavailable,
    UsageError,
)
from edgeserve.isolation import IsolatedSession
from tests.bench import acme
from tests.bundles import linear, linear_bundle
from tests.waiting import wait_for

CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
GPU = Candidate("onnx-fp32", "onnxruntime", "gpu")
FOREVER = 1000.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path_factory.mktemp("chain")))


def options(*faults: str, **changes: Any) -> ChainOptions:
    """A stand-in GPU before the CPU; pauses are short, and what hangs is soon found."""
    watchdog = 0.5 if any("hang" in f for f in faults) else 20.0
    values: dict[str, Any] = {"reopen_s": 0.05, "watchdog_s": watchdog, "threads": 1, "spin": False}
    return ChainOptions(inject=("gpu:stand-in", *faults), **values | changes)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def ask(chain: Chain, count: int = 1, seed: int = 0) -> str:
    """One request, whose answer is compared; the device that gave it."""
    x = rows(count, seed)
    outputs, candidate = chain.run({"x": x})
    np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)
    return candidate.device


def pid_of(chain: Chain) -> int:
    assert isinstance(chain.session, IsolatedSession)
    return chain.session.pid


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash@8", "crash"),
        ("kill@8", "crash"),
        ("hang@8", "hang"),
        ("nan@8", "non-finite"),
    ],
)
def test_a_failing_call_is_answered_by_the_next_candidate_and_the_device_comes_back(
    bundle: Bundle, fault: str, reason: str
) -> None:
    with Chain(bundle, options(f"gpu:{fault}", recheck_s=0)) as chain:
        devices = [
            ask(chain, seed=seed) for seed in range(4)
        ]  # calls 5 to 8, after four golden ones
        assert devices == ["gpu"] * 3 + ["cpu"]
        wait_for(lambda: len(chain.fallbacks) == 1)
        assert [(f.source.device, f.destination.device, f.reason) for f in chain.fallbacks] == [
            ("gpu", "cpu", reason)
        ]
        assert {r.reason: n for r, n in chain.replays().items()} == {reason: 1}
        wait_for(lambda: chain.candidate.device == "gpu")
        assert ask(chain) == "gpu"
        assert [p.destination.device for p in chain.promotions] == ["gpu"]
        assert chain.promotions[0].away_s > 0


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("open-failure@load", "cannot open 'gpu': injected: gpu:open-failure@load"),
        ("crash@load", "died of SIGSEGV"),
        pytest.param("kill@load", "died of SIGKILL", marks=pytest.mark.slow),
        pytest.param("exception@load", "RuntimeError: injected", marks=pytest.mark.slow),
        pytest.param("oom@load", "out of memory on 'gpu'", marks=pytest.mark.slow),
        ("hang@load", "did not open it within 3 s"),
        ("disappear=1@load", "ended with code 1"),
        pytest.param("crash@warm-up", "died of SIGSEGV", marks=pytest.mark.slow),
        pytest.param("hang@warm-up", "did not finish a call within 3 s", marks=pytest.mark.slow),
        ("nan@warm-up", "does not reproduce the golden samples"),
        pytest.param("wrong@warm-up", "does not reproduce the golden samples", marks=pytest.mark.slow),
        pytest.param("exception@warm-up", "the device failed", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_fails_at_load_does_not_serve_and_is_tried_again(
    bundle: Bundle, fault: str, error: str
) -> None:
    patience = 3.0 if "hang" in fault else 60.0
    with Chain(bundle, options(f"gpu:{fault}", open_timeout_s=patience, reopen_s=0.01)) as chain:
        assert ask(chain) == "cpu"
        assert error in (chain.status().reason or "")
        assert chain.status().retry_s is not None
        assert [f.destination.device for f in chain.fallbacks] == ["cpu"]
        wait_for(lambda: chain.candidate.device == "gpu")
        assert ask(chain) == "gpu"
        assert chain.status().reason is None


def test_a_slow_open_is_waited_for(bundle: Bundle) -> None:
    with Chain(bundle, options("gpu:slow-open=0.4@load")) as chain:
        assert chain.candidate.device == "gpu"
        assert (chain.attempts[0].load_ms or 0) > 400


def test_memory_that_is_too_small_makes_batches_smaller_not_the_device_leave(
    bundle: Bundle,
) -> None:
    with Chain(bundle, options("gpu:oom=3@6+")) as chain:
        assert [ask(chain, count) for count in (1, 16, 16, 5, 64, 1)] == ["gpu"] * 6
        assert chain.status().max_rows == 2
        assert chain.fallbacks == []


def test_wrong_numbers_are_found_by_the_next_golden_check(bundle: Bundle) -> None:
    with Chain(bundle, options("gpu:wrong@6", recheck_s=FOREVER, reopen_s=FOREVER)) as chain:
        assert ask(chain) == "gpu"
        chain.keeper._next_check = 0.0  # that time has passed
        chain.keeper.wake()
        wait_for(lambda: chain.candidate.device == "cpu")
        assert ask(chain) == "cpu"
        assert [f.reason for f in chain.fallbacks] == ["drift"]
        assert "does not reproduce the golden samples" in (chain.status().reason or "")


def answered(chain: Chain, devices: list[str]) -> list[str]:
    """Note which device answered one more request; the error if none did."""
    try:
        devices.append(ask(chain))
    except InferenceFailed as error:
        return [str(error)]
    return []


def test_a_candidate_whose_files_changed_does_not_take_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = linear_bundle(tmp_path)
    faults = options("gpu:kill@9", reopen_s=FOREVER, standby="cold")
    with Chain(Bundle.open(path), faults) as chain:
        assert ask(chain) == "gpu"
        (path / "onnx-fp32" / "model.onnx").write_bytes(b"")
        devices = []
        while not (errors := answered(chain, devices)):
            assert len(devices) < 20
        assert "died of SIGKILL" in errors[0]
        assert set(devices) == {"gpu"}  # it had gone on
    assert any(
        "cannot take over" in r.getMessage() and "written with" in r.getMessage()
        for r in caplog.records
    )


def test_with_verify_not_one_wrong_answer_gets_out(bundle: Bundle) -> None:
    with Chain(bundle, options("gpu:wrong@9", verify=True)) as chain:
        devices = [ask(chain, 1 + seed % 3, seed) for seed in range(5)]
        assert devices == ["gpu"] * 4 + ["cpu"]
        wait_for(lambda: [f.reason for f in chain.fallbacks] == ["drift"])
        assert ask(chain, 64) in ("cpu", "gpu")  # a full batch has no room for the sample


def test_infinity_that_belongs_to_the_request_is_no_failure(bundle: Bundle) -> None:
    with Chain(bundle, options()) as chain:
        large = [-3e38, 0, 0, 3e38]  # overflows on every device
        for values in ([np.nan] * 4, [np.inf] * 4, large):
            outputs, _ = chain.run({"x": np.array([values], np.float32)})
            assert not np.isfinite(outputs["y"]).all()
        assert chain.fallbacks == []
        assert ask(chain) == "gpu"


def test_a_request_at_fault_does_not_take_the_device_down(bundle: Bundle) -> None:
    with Chain(bundle, options()) as chain:
        with pytest.raises(InferenceFailed, match="onnxruntime failed"):
            chain.run({"x": np.zeros((1, 5), np.float32)})
        assert ask(chain) == "gpu"
        assert chain.fallbacks == []


def test_a_death_is_noticed_before_the_next_request(bundle: Bundle) -> None:
    heard: list[str] = []
    with Chain(bundle, options(reopen_s=FOREVER)) as chain:
        chain.listen(lambda: heard.append(chain.candidate.device))
        os.kill(pid_of(chain), signal.SIGKILL)
        wait_for(lambda: heard == ["cpu"])
        assert chain.status().ready
        assert "died of SIGKILL" in (chain.status().reason or "")
        assert ask(chain) == "cpu"


@pytest.mark.slow
def test_a_device_that_keeps_failing_comes_back_ever_later(bundle: Bundle) -> None:
    """It dies at its tenth call, each time: four golden ones at load, four before it serves again."""
    with Chain(bundle, options("gpu:kill@10+", stable_s=FOREVER)) as chain:
        pauses: list[float] = []
        for times in range(1, 5):
            while len(chain.fallbacks) < times:
                ask(chain)
            pauses.append(chain.status().retry_s or 0.0)
            wait_for(lambda: chain.candidate.device == "gpu")
        assert [later > 1.2 * sooner for sooner, later in pairwise(pauses)] == [True] * 3


def test_nothing_serves_in_its_place_with_fallback_never(bundle: Bundle) -> None:
    with Chain(bundle, options("gpu:kill@6", fallback=False, reopen_s=0.3)) as chain:
        assert ask(chain) == "gpu"
        with pytest.raises(DeviceLost, match="died of SIGKILL"):
            ask(chain)
        with pytest.raises(ModelUnavailable, match=r"no device serves: .* died of SIGKILL"):
            ask(chain)
        assert not chain.status().ready
        wait_for(lambda: chain.status().ready)
        assert ask(chain) == "gpu"
        assert chain.fallbacks == []


def test_a_chain_of_one_is_started_again(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, chain=(GPU,))
    with Chain(Bundle.open(path), options("gpu:kill@6")) as chain:
        assert [ask(chain) for _ in range(4)] == ["gpu"] * 4
        assert [(f.source, f.destination) for f in chain.fallbacks] == [(GPU, GPU)]


def test_a_chain_whose_only_device_stays_away_fails_at_once_until_it_is_back(
    tmp_path: Path,
) -> None:
    path = linear_bundle(tmp_path, chain=(GPU,))
    with Chain(Bundle.open(path), options("gpu:disappear=1000@6", reopen_s=100.0)) as chain:
        ask(chain)
        with pytest.raises(DeviceLost):
            ask(chain)
        due = chain.links[0].backoff.due
        with pytest.raises(ModelUnavailable):
            ask(chain)
        assert chain.links[0].backoff.due == due  # it was not tried
        assert not chain.status().ready
        bring_back(chain)
        wait_for(lambda: chain.status().ready)
        assert ask(chain) == "gpu"


def bring_back(chain: Chain) -> None:
    """A device that disappeared opens again, and word of that comes."""
    assert chain.candidates.fault_state is not None
    for file in Path(chain.candidates.fault_state.name).iterdir():
        os.utime(file, (0, 0))
    chain.board.opened(device_key(chain.links[0].candidate))


def test_a_required_device_must_serve_and_keeps_the_chain_from_being_ready(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable, match="'gpu' is required") as caught:
        Chain(bundle, options("gpu:open-failure@load", require="gpu"))
    assert "injected: gpu:open-failure@load" in (caught.value.cause or "")
    with pytest.raises(DeviceUnavailable, match="'npu' is required"):
        Chain(bundle, ChainOptions(require="npu"))
    with Chain(bundle, options("gpu:kill@6", require="gpu", reopen_s=0.5)) as chain:
        assert chain.status().ready
        ask(chain)
        assert ask(chain) == "cpu"
        assert not chain.status().ready
        wait_for(lambda: chain.status().ready)


def test_a_required_device_goes_first_wherever_it_stands(tmp_path: Path) -> None:
    """What stands before it in the chain is behind it now, and takes over when it is lost."""
    behind = Bundle.open(linear_bundle(tmp_path, chain=(CPU, GPU)))
    with Chain(behind, options()) as chain:
        assert ask(chain) == "cpu"
    with Chain(behind, options("gpu:kill@8", require="gpu", reopen_s=0.5)) as chain:
        assert [a.candidate for a in chain.attempts] == [GPU, CPU]
        assert chain.fallbacks == []
        devices = [ask(chain) for _ in range(8)]
        assert (devices[0], devices[-1]) == ("gpu", "cpu")
        assert not chain.status().ready
        wait_for(lambda: chain.status().ready)
        assert ask(chain) == "gpu"
    with pytest.raises(DeviceUnavailable, match="'gpu' is required") as caught:
        Chain(behind, options("gpu:open-failure@load", require="gpu"))
    assert "injected: gpu:open-failure@load" in (caught.value.cause or "")
    with pytest.raises(DeviceUnavailable, match="'npu' is required") as caught:
        Chain(behind, options(require="npu"))
    assert caught.value.cause == "the chain has no candidate on 'npu'"


@pytest.mark.parametrize(("standby", "opened"), [("warm", True), ("auto", True), ("cold", False)])
def test_the_standby_is_open_or_not(bundle: Bundle, standby: str, opened: bool) -> None:
    with Chain(bundle, options("gpu:kill@6", standby=standby, reopen_s=0.2)) as chain:
        if opened:
            wait_for(lambda: chain.attempts[1].ok)
        else:
            time.sleep(0.1)
            assert not chain.attempts[1].tried
        assert [ask(chain), ask(chain)] == ["gpu", "cpu"]
        wait_for(lambda: chain.candidate.device == "gpu")
        wait_for(lambda: (chain.links[1].opened is not None) is opened)


def test_a_lost_device_makes_other_models_look_and_a_healthy_one_stays(tmp_path: Path) -> None:
    """Two models on one device: one's process dies; the other is checked, and goes on."""
    one, other = (
        Bundle.open(linear_bundle(tmp_path, "one")),
        Bundle.open(linear_bundle(tmp_path, "other")),
    )
    with Chain(one, options(reopen_s=FOREVER)) as first, Chain(other, options()) as second:
        checked = pid_of(second)
        os.kill(pid_of(first), signal.SIGKILL)
        wait_for(lambda: first.candidate.device == "cpu")
        assert ask(second) == "gpu"
        assert pid_of(second) == checked
        assert second.fallbacks == []


def test_a_dead_device_is_known_to_all_before_their_next_request(tmp_path: Path) -> None:
    """The second model's process hangs at its next call: the look at it finds that, no request does."""
    one, other = (
        Bundle.open(linear_bundle(tmp_path, "one")),
        Bundle.open(linear_bundle(tmp_path, "other")),
    )
    dying = options("gpu:hang@5", reopen_s=FOREVER, watchdog_s=0.3)
    with Chain(one, options(reopen_s=FOREVER)) as first, Chain(other, dying) as second:
        os.kill(pid_of(first), signal.SIGKILL)
        wait_for(lambda: second.candidate.device == "cpu")
        assert [f.reason for f in second.fallbacks] == ["hang"]
        assert ask(second) == "cpu"


def test_a_device_that_did_not_open_is_not_tried_again_by_the_next_model(tmp_path: Path) -> None:
    one, other = (
        Bundle.open(linear_bundle(tmp_path, "one")),
        Bundle.open(linear_bundle(tmp_path, "other")),
    )
    with (
        Chain(one, options("gpu:open-failure@load", reopen_s=FOREVER)) as first,
        Chain(other, options(reopen_s=FOREVER)) as second,  # where it would open
    ):
        assert second.candidate.device == "cpu"
        assert second.attempts[0].error == first.attempts[0].error


def test_a_device_found_by_one_model_is_tried_by_the_others(tmp_path: Path) -> None:
    one, other = (
        Bundle.open(linear_bundle(tmp_path, "one")),
        Bundle.open(linear_bundle(tmp_path, "other")),
    )
    with (
        Chain(one, options("gpu:disappear=0.5@load", reopen_s=0.02)) as first,
        Chain(other, options(reopen_s=FOREVER)) as second,
    ):
        assert (first.candidate.device, second.candidate.device) == ("cpu", "cpu")
        wait_for(lambda: first.candidate.device == "gpu")
        wait_for(lambda: second.candidate.device == "gpu")


def test_without_isolation_everything_runs_in_this_process(bundle: Bundle, tmp_path: Path) -> None:
    with Chain(bundle, ChainOptions(isolate="always")) as chain:
        assert pid_of(chain) != os.getpid()
        assert ask(chain) == "cpu"
        assert chain.may_wait
    with Chain(bundle, ChainOptions(isolate="never")) as chain:
        assert not isinstance(chain.session, IsolatedSession)
        assert not chain.may_wait
    with pytest.raises(UsageError, match="need isolated candidates"):
        Chain(bundle, options(isolate="never"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("crash@6", "died of SIGSEGV: injected: gpu:crash@6 (hint: it will be restarted after a pause"),
        ("exception@6+", "the device failed: injected: gpu:exception@6+"),
        ("nan@6", "returned NaN or infinity (hint: its driver or its precision is at fault"),
    ],
)  # fmt: skip
def test_one_log_line_has_the_device_s_words_and_a_hint(
    bundle: Bundle, fault: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Chain(bundle, options(f"gpu:{fault}", reopen_s=FOREVER)) as chain:
        assert [ask(chain), ask(chain)] == ["gpu", "cpu"]
        wait_for(lambda: len(chain.fallbacks) == 1)
        step = chain.fallbacks[0]
    (line,) = [r.getMessage() for r in caplog.records if "gpu" in r.getMessage()]
    gpu, cpu = chain.links[0].candidate.label, chain.links[1].candidate.label
    assert line.startswith(f"{gpu} failed while serving, {cpu} serves: ")
    assert words in line
    assert "\n" not in line
    assert step.message in line
    assert time.time() - step.at < 60


def test_what_does_not_open_is_one_log_line_with_a_hint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real engine's words: there is no NPU here."""
    npu = Candidate("onnx-fp32", "openvino", "npu")
    with Chain(Bundle.open(linear_bundle(tmp_path, chain=(npu, CPU)))) as chain:
        error, hint = chain.attempts[0].error, chain.attempts[0].hint
        assert (chain.fallbacks[0].message, chain.fallbacks[0].hint) == (error, hint)
    (line,) = [r.getMessage() for r in caplog.records if "npu" in r.getMessage()]
    assert hint
    assert line == f"{npu.label} does not serve: {' '.join(str(error).split())} (hint: {hint})"


def test_elsewhere_than_on_linux_what_cannot_be_isolated_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Bundle.open(linear_bundle(tmp_path))
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UsageError, match="--isolate always needs isolated processes") as caught:
        Chain(plain, ChainOptions(isolate="always"))
    assert caught.value.cause == "isolated processes need Linux, this is darwin"
    with pytest.raises(UsageError, match="injected faults need isolated processes"):
        Chain(plain, options("gpu:kill@6"))
    acme.install(tmp_path / "site", monkeypatch)
    behind = Bundle.open(linear_bundle(tmp_path, "behind", chain=(acme.candidate(), CPU)))
    with Chain(behind) as chain:
        assert (chain.candidate.device, chain.attempts[0].isolated) == ("npu", False)
    assert "runs in this process: on darwin a driver that crashes" in caplog.text


def test_a_stand_in_needs_a_cpu_candidate(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, chain=(GPU,))
    with pytest.raises(UsageError, match="no CPU candidate can stand in for 'npu'"):
        Chain(Bundle.open(path), ChainOptions(inject=("npu:stand-in",)))


def test_closing_does_not_wait_for_a_device_that_does_not_open(bundle: Bundle) -> None:
    others = set(psutil.Process().children())
    chain = Chain(bundle, options("gpu:hang@load+", reopen_s=0.01, open_timeout_s=8.0))
    wait_for(lambda: bool(set(psutil.Process().children()) - others))  # it is tried again
    began = time.monotonic()
    chain.close()
    assert time.monotonic() - began < 7
    assert set(psutil.Process().children()) <= others
