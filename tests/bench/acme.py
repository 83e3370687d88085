"""A third party's runtime for tests: computes `linear_model` with numpy, and misbehaves when asked to.

The option `fault` is `abort`, `hang`, `chatter` (prints to stdout). `after` so many calls it raises, or
with the fault `die` its process dies.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.bundle import Candidate
from edgeserve.bundle.manifest import Option
from tests.distributions import write_distribution

_MODULE = """
import os, signal, time
import numpy as np
from edgeserve.errors import InferenceFailed
from edgeserve.runtimes import Placement, RuntimeInfo

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)

class Acme:
    name = "acme"
    formats = ("onnx",)
    requires = ("acme",)

    def probe(self):
        return RuntimeInfo("acme", "1.0")

    def load(self, model, device, options):
        fault = options.options.get("fault")
        if fault == "abort":
            print("acme driver: assertion failed", file=__import__("sys").stderr, flush=True)
            os.abort()
        if fault == "hang":
            time.sleep(60)
        if fault == "chatter":
            print("EP Error: {}", flush=True)
        return Session(model, device, options)

class Session:
    def __init__(self, model, device, options):
        self.inputs, self.outputs = model.interface.inputs, model.interface.outputs
        self.device, self.concurrency = device, 1
        self.precision = options.options.get("computes_in", "fp32")
        self.left = options.options.get("after", -1)
        self.dies = options.options.get("fault") == "die"

    def run(self, inputs):
        self.left -= 1
        if self.left == 0 and self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left == 0:
            raise InferenceFailed("acme failed on npu", cause="out of tiles")
        return {"y": np.maximum(inputs["x"] @ WEIGHT + np.float32(0.5), 0)}

    def placement(self):
        return Placement({"npu": 0.75, "cpu": 0.25}, self.precision, 1, 0)

    def close(self):
        pass
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the runtime known to this process and to its children."""
    site = write_distribution(
        folder, "acme_bench", "edgeserve.runtimes", "acme = acme_bench:Acme", _MODULE
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))


def candidate(**options: Option) -> Candidate:
    return Candidate("onnx-fp32", "acme", "npu", options=options)
