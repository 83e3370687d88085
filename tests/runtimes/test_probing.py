"""Probes in processes of their own: real engines, and adapters that crash, hang and lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeserve.runtimes import runtime, runtime_names
from edgeserve.runtimes.probes import PROBE_FILES
from edgeserve.runtimes.probing import (
    onnxruntime_providers,
    open_in_child,
    open_in_children,
    opening_error,
    probe_model,
)
from edgeserve.targets.schema import ChainEntry
from tests.data.make_probes import onnx_model, tflite_model
from tests.distributions import write_distribution

ADAPTER = """
import os, signal, sys, time
import numpy as np
from edgeserve.runtimes import Placement, RuntimeInfo

class Session:
    hardware = "ACME 1"
    def run(self, inputs):
        return {"y": inputs["x"] * FACTOR}
    def placement(self):
        return Placement({"npu": 1.0}, "fp16", 0, 0)
    def close(self):
        pass

FACTOR = 2

class Acme:
    name, formats, requires = "acme", ("onnx",), ()
    def probe(self):
        return RuntimeInfo("acme", "1.0")
    def load(self, model, device, options):
        what = options.options.get("do")
        if what == "crash":
            sys.stderr.write("acme: WARNING: [tile.cc:7] tile 3 is gone\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(600)
        if what == "exit":
            os._exit(4)
        if what == "raise":
            raise KeyError("no licence")
        global FACTOR
        FACTOR = 3 if what == "lie" else 2
        return Session()
"""


@pytest.fixture
def acme_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write_distribution(
        tmp_path / "site", "acme_engine", "edgeserve.runtimes", "acme = acme_engine:Acme", ADAPTER
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.usefixtures("acme_path")
@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("crash", "its process dies of SIGSEGV while the device is opened", "tile 3 is gone"),
        ("exit", "its process dies with exit code 4 while the device is opened", None),
        ("raise", "its adapter fails: 'no licence'", None),
        ("lie", "acme computes wrong numbers on 'npu': [0.5, -1.0, 2.0, 1024.0] doubled is", None),
    ],
)
def test_what_goes_wrong_stays_in_the_child(what: str, error: str, said: str | None) -> None:
    found = open_in_child("acme", "npu", {"do": what})
    assert not found.ok
    assert found.error is not None
    assert found.error.startswith(error)
    assert (found.said or "").endswith(said or "")


@pytest.mark.usefixtures("acme_path")
def test_a_driver_that_hangs_is_killed() -> None:
    found = open_in_child("acme", "npu", {"do": "hang"}, timeout_s=1.5)
    assert found.error == "hangs: no answer within 1.5 s"
    assert found.hint


@pytest.mark.usefixtures("acme_path")
def test_what_opens_says_how_and_on_what() -> None:
    found = open_in_child("acme", "npu", {})
    assert found.ok
    assert (found.hardware, found.version) == ("ACME 1", "1.0")
    assert found.placement == "100 % of operations on npu, fp16"
    assert found.load_ms is not None


def test_every_engine_really_runs_the_probe_model_on_the_cpu() -> None:
    names = [n for n in runtime_names() if runtime(n).probe().installed]
    found = open_in_children([(name, "cpu", {}) for name in names if name != "acme"])
    assert [p.runtime for p in found] == names
    for probe in found:
        assert probe.ok, probe.error
        assert probe.run_ms is not None
        assert probe.placement is not None
        assert "on cpu" in probe.placement


def test_an_unknown_runtime_is_an_answer_too() -> None:
    found = open_in_child("warp", "cpu", {})
    assert found.error == "unknown runtime 'warp'"


def test_the_providers_are_those_of_the_installed_build() -> None:
    assert onnxruntime_providers() == onnxruntime.get_available_providers()


def test_opening_error_is_the_engine_s_own_message() -> None:
    entry = ChainEntry(
        "onnxruntime", "gpu", ("fp32",), options={"provider": "CUDAExecutionProvider"}
    )
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    error = opening_error(entry)
    assert error is not None
    assert "not CUDAExecutionProvider" in str(error)
    assert opening_error(ChainEntry("onnxruntime", "cpu", ("fp32",))) is None


def test_the_probe_models_double_and_are_what_their_script_writes() -> None:
    assert PROBE_FILES["onnx"].read_bytes() == onnx_model()
    assert PROBE_FILES["tflite"].read_bytes() == tflite_model()
    onnx.checker.check_model(onnx.load(PROBE_FILES["onnx"]))
    session = onnxruntime.InferenceSession(str(PROBE_FILES["onnx"]))
    (y,) = session.run(None, {"x": np.arange(4, dtype=np.float32)})
    np.testing.assert_array_equal(y, [0, 2, 4, 6])
    assert probe_model("gguf") is None


def test_no_process_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging driver's helper process goes with it."""
    site = write_distribution(
        tmp_path / "site",
        "acme_engine",
        "edgeserve.runtimes",
        "acme = acme_engine:Acme",
        ADAPTER.replace(
            "time.sleep(600)",
            "import subprocess; open(os.environ['ACME_PID'], 'w').write("
            "str(subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)",
        ),
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("ACME_PID", str(tmp_path / "pid"))
    assert not open_in_child("acme", "npu", {"do": "hang"}, timeout_s=2.5).ok
    helper = int((tmp_path / "pid").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(helper)], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z"), sys.platform
