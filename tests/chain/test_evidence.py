"""What one request's failure says of a device: nothing that its golden samples do not say as well.

The GPU is played by the CPU engine in a process of its own; what fails, fails on the real engine, or where a
fault is injected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain import Chain, ChainOptions
from edgeserve.errors import InferenceFailed, InputFailed, ModelUnavailable
from edgeserve.isolation import IsolatedSession
from tests.bundles import linear, linear_bundle
from tests.fallback.data import gather_bundle, length_bundle, loop_bundle, overflow_bundle
from tests.waiting import wait_for

GPU = Candidate("onnx-fp32", "onnxruntime", "gpu")
FOREVER = 1000.0


def options(*faults: str, **changes: Any) -> ChainOptions:
    values: dict[str, Any] = {"reopen_s": 0.05, "watchdog_s": 20.0, "threads": 1, "spin": False}
    return ChainOptions(inject=("gpu:stand-in", *faults), **values | changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path_factory.mktemp("plain")))


@pytest.fixture
def overflowing(tmp_path: Path) -> Iterator[Chain]:
    with Chain(Bundle.open(overflow_bundle(tmp_path)), options(trust_s=FOREVER)) as chain:
        yield chain


def ask(chain: Chain, seed: int = 0) -> str:
    x = np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)
    outputs, candidate = chain.run({"x": x})
    np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)
    return candidate.device


def echo(chain: Chain, *values: float) -> str:
    x = np.array([values], np.float32)
    outputs, candidate = chain.run({"x": x})
    np.testing.assert_allclose(outputs["y"], x, rtol=1e-5)
    return candidate.device


def replays(chain: Chain) -> dict[tuple[str, str, str], int]:
    """By the devices' names and the reason."""
    return {
        (r.source.split("/")[1], r.destination.split("/")[1], r.reason): n
        for r, n in chain.replays().items()
    }


def pid_of(chain: Chain) -> int:
    assert isinstance(chain.session, IsolatedSession)
    return chain.session.pid


def test_numbers_too_large_for_one_device_are_another_s_and_it_serves_on(
    overflowing: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    pid = pid_of(overflowing)
    for seed in range(30):
        assert echo(overflowing, 1, 2, 3, seed) == "gpu"
        assert echo(overflowing, 1000, 2, 3, seed) == "cpu"
    wait_for(lambda: "reproduces its golden samples and goes on serving" in caplog.text)
    assert (overflowing.candidate.device, pid_of(overflowing)) == ("gpu", pid)
    assert overflowing.fallbacks == []
    assert replays(overflowing) == {("gpu", "cpu", "non-finite"): 30}
    # Not a golden check for each of them: others were answered, so that one stands for a while. A request
    # may fail before the first has ended.
    assert caplog.text.count("goes on serving") <= 2


def test_many_bad_requests_alone_do_not_keep_a_device_busy_with_checks(
    overflowing: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(50):
        assert echo(overflowing, 1000, 2, 3, seed) == "cpu"
    assert overflowing.fallbacks == []
    assert caplog.text.count("goes on serving") < 25


def test_inputs_that_every_candidate_fails_on_are_at_fault_and_no_device_is(
    tmp_path: Path,
) -> None:
    with Chain(Bundle.open(gather_bundle(tmp_path)), options()) as chain:
        for _ in range(5):
            with pytest.raises(InputFailed, match="the model fails on these inputs") as caught:
                chain.run({"i": np.array([10], np.int64)})
            assert "out of" in (caught.value.cause or "")  # the engine's words
            outputs, candidate = chain.run({"i": np.array([9], np.int64)})
            assert (candidate.device, outputs["y"].tolist()) == ("gpu", [[9.0, 18.0]])
        assert chain.fallbacks == []
        assert replays(chain) == {}


def test_a_batch_with_one_bad_request_is_to_be_run_apart(tmp_path: Path) -> None:
    good, bad = {"i": np.array([1], np.int64)}, {"i": np.array([99], np.int64)}
    joined = {"i": np.array([1, 99], np.int64)}
    with Chain(Bundle.open(gather_bundle(tmp_path)), options()) as chain:
        with pytest.raises(InferenceFailed):
            chain.run_batch(joined, [good, bad])
        assert chain.run_batch({"i": np.array([1, 1], np.int64)}, [good, good])[1].device == "gpu"
        assert chain.fallbacks == []


def test_inputs_without_elements_are_inputs(tmp_path: Path) -> None:
    with Chain(Bundle.open(length_bundle(tmp_path)), options()) as chain:
        outputs, candidate = chain.run({"x": np.zeros(0, np.float32)})
        assert (outputs["y"].tolist(), candidate.device) == ([0.0], "gpu")
        with pytest.raises(InputFailed):
            chain.run({"x": np.zeros((2, 2, 2), np.int8)})  # nothing checks it before here
        assert chain.run({"x": np.ones(5, np.float32)})[1].device == "gpu"
        assert chain.fallbacks == []


@pytest.mark.parametrize("fault", ["exception", "oom"])
def test_a_fault_that_comes_once_costs_one_replay(plain: Bundle, fault: str) -> None:
    with Chain(plain, options(f"gpu:{fault}@7")) as chain:
        assert [ask(chain, seed) for seed in range(5)] == ["gpu", "gpu", "cpu", "gpu", "gpu"]
        assert chain.fallbacks == []
        assert [reason for _, _, reason in replays(chain)] == [
            {"exception": "exception", "oom": "out-of-memory"}[fault]
        ]


@pytest.mark.parametrize(
    ("fault", "reason"), [("exception@7+", "exception"), ("nan@7", "non-finite")]
)
def test_a_device_that_fails_at_everything_is_given_up_at_once(
    plain: Bundle, fault: str, reason: str
) -> None:
    with Chain(plain, options(f"gpu:{fault}", reopen_s=FOREVER)) as chain:
        devices = [ask(chain, seed) for seed in range(3)]
        assert devices == ["gpu", "gpu", "cpu"]
        wait_for(lambda: [f.reason for f in chain.fallbacks] == [reason])
        assert ask(chain) == "cpu"


@pytest.mark.slow
def test_a_device_that_breaks_after_it_was_cleared_is_given_up_all_the_same(
    plain: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """One exception, then NaN for ever; the golden check after the first does not speak for it for long."""
    faults = ("gpu:exception@6", "gpu:nan@14")
    with Chain(plain, options(*faults, reopen_s=FOREVER)) as chain:
        assert [ask(chain), ask(chain)] == ["gpu", "cpu"]
        wait_for(lambda: "goes on serving" in caplog.text)
        wait_for(lambda: ask(chain) == "cpu")
        wait_for(lambda: ask(chain) == "cpu" and len(chain.fallbacks) == 1)
        assert chain.fallbacks[0].reason == "non-finite"


def test_where_there_is_no_other_a_fault_that_comes_once_is_tried_again(tmp_path: Path) -> None:
    alone = Bundle.open(linear_bundle(tmp_path, chain=(GPU,)))
    with Chain(alone, options("gpu:exception@6")) as chain:
        assert [ask(chain) for _ in range(4)] == ["gpu"] * 4
        assert chain.fallbacks == []
        assert replays(chain) == {("gpu", "gpu", "exception"): 1}


def test_an_only_accelerator_that_answers_nan_is_started_again(tmp_path: Path) -> None:
    alone = Bundle.open(linear_bundle(tmp_path, chain=(GPU,)))
    with Chain(alone, options("gpu:nan@6")) as chain:
        assert [ask(chain) for _ in range(4)] == ["gpu"] * 4
        assert [f.reason for f in chain.fallbacks] == ["non-finite"]


@pytest.mark.parametrize("fault", ["nan@6", "wrong@6", "exception@6+"])
def test_with_fallback_never_a_wrong_device_is_not_ready_until_it_is_right(
    plain: Bundle, fault: str
) -> None:
    verify = fault.startswith("wrong")
    never = options(f"gpu:{fault}", fallback=False, reopen_s=0.3, verify=verify)
    with Chain(plain, never) as chain:
        assert ask(chain) == "gpu"
        assert [status.state for status in chain.link_statuses()] == ["serving", "unused"]
        with pytest.raises(InferenceFailed) as caught:
            ask(chain)
        assert not isinstance(caught.value, InputFailed)
        assert not chain.status().ready
        with pytest.raises(ModelUnavailable, match="no device serves"):
            ask(chain)
        if fault.endswith("+"):
            return  # each time it is opened
        wait_for(lambda: chain.status().ready)
        assert ask(chain) == "gpu"


def test_with_fallback_never_a_request_at_fault_leaves_the_device_and_says_so(
    tmp_path: Path,
) -> None:
    with Chain(Bundle.open(gather_bundle(tmp_path)), options(fallback=False)) as chain:
        with pytest.raises(InputFailed):
            chain.run({"i": np.array([10], np.int64)})
        assert chain.status().ready
        assert chain.run({"i": np.array([1], np.int64)})[1].device == "gpu"
    with Chain(Bundle.open(overflow_bundle(tmp_path)), options(fallback=False)) as chain:
        outputs, candidate = chain.run({"x": np.array([[1000, 0, 0, 0]], np.float32)})
        assert np.isinf(outputs["y"][0, 0])  # as the device computes it: nothing else may answer
        assert (candidate.device, chain.status().ready) == ("gpu", True)


def test_a_required_device_that_is_wrong_is_not_ready_until_it_is_right(plain: Bundle) -> None:
    with Chain(plain, options("gpu:nan@6", require="gpu", reopen_s=0.3)) as chain:
        assert [ask(chain), ask(chain)] == ["gpu", "cpu"]
        wait_for(lambda: not chain.status().ready)
        wait_for(lambda: chain.status().ready)
        assert ask(chain) == "gpu"


def test_a_failing_request_does_not_try_a_device_before_its_time(tmp_path: Path) -> None:
    """While the GPU is away the CPU serves; what fails there does not open the GPU, nor keep it away."""
    away = options("gpu:open-failure@load", reopen_s=FOREVER)
    with Chain(Bundle.open(gather_bundle(tmp_path)), away) as chain:
        due = chain.links[0].backoff.due
        for _ in range(3):
            with pytest.raises(InputFailed):
                chain.run({"i": np.array([10], np.int64)})
        assert chain.links[0].backoff.due == due
        assert chain.candidate.device == "cpu"


@pytest.mark.slow
def test_what_ends_a_process_twice_is_not_run_there_again(tmp_path: Path) -> None:
    """A real endless loop on every device, each in a process of its own; the watchdog ends them."""
    chain_options = options(isolate="always", watchdog_s=0.4, standby="warm")
    poison = {"n": np.array([2**60], np.int64)}
    with Chain(Bundle.open(loop_bundle(tmp_path)), chain_options) as chain:
        wait_for(lambda: chain.attempts[1].ok)
        with pytest.raises(InputFailed, match="ended the process"):
            chain.run(poison)
        wait_for(lambda: chain.candidate.device == "gpu")
        # One process of each candidate, no more: the second may not have served any more.
        stepped = len(chain.fallbacks)
        assert stepped in (1, 2)
        pid = pid_of(chain)
        for _ in range(3):
            with pytest.raises(InputFailed, match="ended the process"):
                chain.run(poison)
            outputs, candidate = chain.run({"n": np.array([7], np.int64)})
            assert (outputs["y"].tolist(), candidate.device) == ([7.0], "gpu")
        assert pid_of(chain) == pid
        assert len(chain.fallbacks) == stepped


def test_inputs_that_were_there_when_a_process_was_killed_are_run_there_again(
    plain: Bundle,
) -> None:
    with Chain(plain, options("gpu:kill@6")) as chain:
        assert [ask(chain), ask(chain)] == ["gpu", "cpu"]
        wait_for(lambda: chain.candidate.device == "gpu")
        assert [ask(chain) for _ in range(3)] == ["gpu"] * 3
        assert not chain.replayer.lethal.any  # they were answered: they are no suspects


@pytest.mark.parametrize(("standby", "state"), [("warm", "standby"), ("cold", "closed")])
def test_a_standby_is_said_to_be_open_only_when_it_is(
    plain: Bundle, standby: str, state: str
) -> None:
    with Chain(plain, options(standby=standby)) as chain:
        wait_for(lambda: chain.link_statuses()[1].state == state)
        assert (chain.links[1].opened is not None) is (state == "standby")
        assert chain.link_statuses()[0].state == "serving"


def test_every_failure_begins_another_era(plain: Bundle) -> None:
    """Whoever keeps answers sees that those of a device that failed are not to be relied on."""
    with Chain(plain, options("gpu:wrong@6", recheck_s=1.0, reopen_s=FOREVER)) as chain:
        before = chain.era
        wait_for(lambda: chain.candidate.device == "cpu")
        assert chain.era > before
