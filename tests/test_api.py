"""The Python API: how many calls of a loaded model run at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import edgeserve
from edgeserve import api
from edgeserve.bundle import Candidate
from tests.bundles import linear, linear_bundle

OPENVINO = Candidate("onnx-fp32", "openvino", "cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_bundle(tmp_path_factory.mktemp("api"), "linear", (OPENVINO,))


@pytest.mark.parametrize(
    ("given", "instances", "threads"),
    [
        ({}, 1, 0),  # never measured: one call, on as many cores as the engine likes
        ({"threads": 1}, 4, 1),
        ({"threads": 2}, 2, 2),
        ({"instances": 2}, 2, 2),
        ({"instances": 3, "threads": 1}, 3, 1),
    ],
)
def test_what_is_left_open_is_chosen_by_cores_and_model(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, int],
    instances: int,
    threads: int,
) -> None:
    monkeypatch.setattr(api, "usable_cores", lambda: 4)
    with edgeserve.load(bundle, **given) as model:
        options = model._chain.options
        assert (options.instances, options.threads) == (instances, threads)
        assert model._chain.session.concurrency == instances


def test_a_call_runs_while_another_one_has_an_infer_request(bundle: Path) -> None:
    x = np.ones((1, 4), np.float32)
    with edgeserve.load(bundle, threads=1, instances=2) as model:
        requests = model._chain.session._pool._requests  # type: ignore[attr-defined]
        busy = requests.get_nowait()  # as a call has it while it runs
        np.testing.assert_allclose(model.run({"x": x})["y"], linear(x), rtol=1e-5)
        last = requests.get_nowait()  # now both have one: the next call waits
        waiting = threading.Thread(target=model.run, args=({"x": x},))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        requests.put(busy)
        requests.put(last)
        waiting.join(30)
        assert not waiting.is_alive()
