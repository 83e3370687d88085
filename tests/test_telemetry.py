"""Nothing that edgeserve imports reports to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.inspecting import inspect_model
from edgeserve.runtimes.probes import PROBE_FILES

USES = {
    "serve": "from edgeserve.runtimes import runtime; runtime('openvino').probe()",
    "version": "from edgeserve.runtimes import runtime; runtime('openvino').version()",
    "inspect": "from edgeserve.inspecting import inspect_model; inspect_model(Path(sys.argv[1]))",
    "check": "from edgeserve.checking.support.openvino import _core; _core()",
    "convert": """
from edgeserve.conversion.tools.registry import converter_called, run_converter
run_converter(converter_called('onnx-to-openvino'), Path(sys.argv[2]), Path.cwd(), {}, tool_env=False,
              say=lambda *_: None)
""",
}
ASK = """
import sys
from pathlib import Path
{0}
assert "openvino" in sys.modules
print([m for m in sys.modules if m.startswith("openvino_telemetry.")])
"""


@pytest.mark.parametrize("use", USES)
def test_openvino_finds_no_sender(use: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("openvino_telemetry")
    environ = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(USES[use]), PROBE_FILES["openvino-ir"], PROBE_FILES["onnx"]],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "intel").exists()  # where it keeps the identity that it makes up


def test_inspecting_still_works_without_one() -> None:
    pytest.importorskip("openvino")
    assert inspect_model(PROBE_FILES["openvino-ir"]).format == "openvino-ir"
