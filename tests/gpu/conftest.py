"""A real GPU API without a GPU: SwiftShader, the software Vulkan driver inside Debian's chromium package.

The driver is found by environment variables, so that it can be taken away and given back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.chain import BOARD
from tests.gpu.digits import digits_bundle

# Where `apt-get install chromium` puts it; EDGESERVE_TEST_VULKAN_DRIVER names another manifest.
MANIFESTS = ("/usr/lib/chromium/vk_swiftshader_icd.json", "/usr/lib/chromium-browser/vk_swiftshader_icd.json")  # fmt: skip
VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")


def software_driver() -> str | None:
    named = os.environ.get("EDGESERVE_TEST_VULKAN_DRIVER")
    return next((m for m in ((named,) if named else MANIFESTS) if Path(m).is_file()), None)


def why_not() -> str | None:
    """Why a GPU API cannot be had here; None where it can."""
    hint = "make gpu-driver (apt-get install chromium libvulkan1)"
    if software_driver() is None:
        return f"no software Vulkan driver here: {hint}"
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return f"libvulkan.so.1 is missing: {hint}"
    return None


class Driver:
    """The driver of the GPU API, for this process and for those it starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def give(self) -> None:
        for name in VARIABLES:
            self._patch.setenv(name, software_driver() or "")

    def take_away(self) -> None:
        for name in VARIABLES:
            self._patch.setenv(name, "/nonexistent/icd.json")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    """The driver, there at first. Skips where there is none."""
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # the driver complains without
    # The plug-in ignores software drivers unless it is told not to.
    monkeypatch.setenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    here = Driver(monkeypatch)
    here.give()
    return here


@pytest.fixture(scope="session")
def litert_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with LiteRT's GPU first and its CPU behind."""
    return digits_bundle(tmp_path_factory.mktemp("litert"), "litert", {})


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with onnxruntime's WebGPU provider first and its CPU behind."""
    folder = tmp_path_factory.mktemp("onnx")
    return digits_bundle(folder, "onnxruntime", {"provider": "webgpu"})


@pytest.fixture(autouse=True)
def _fresh_board() -> Iterator[None]:
    """What one test learns about devices is not known to the next."""
    BOARD.forget()
    yield
    BOARD.forget()
