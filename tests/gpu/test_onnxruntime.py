"""onnxruntime's WebGPU provider on a real GPU API: built into onnxruntime-webgpu, or plugged in beside
onnxruntime by onnxruntime-ep-webgpu. `make gpu-envs` builds an environment for each; test_environments.py
runs this file there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeserve.bundle import Bundle
from edgeserve.errors import DeviceUnavailable, UnsupportedModel
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.onnx_providers import installed_plug_ins
from edgeserve.runtimes.probing import open_in_child
from tests.gpu.conftest import Driver
from tests.gpu.digits import images, logits
from tests.gpu.scenario import taken_away_and_given_back

WEBGPU = "WebGpuExecutionProvider"
PLUGGED = {p.provider for p in installed_plug_ins()}
pytestmark = pytest.mark.skipif(
    WEBGPU not in {*onnxruntime.get_available_providers(), *PLUGGED},
    reason="this environment has no WebGPU provider: make gpu-envs builds one that has",
)


def opened(bundle: Path, device: str = "gpu", **options: str | bool) -> Session:
    files = Bundle.open(bundle).variant_files("onnx-fp32")
    return runtime("onnxruntime").load(files, device, LoadOptions(options=dict(options)))


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("rows", [1, 3])
def test_it_gives_the_source_s_numbers(onnx_bundle: Path, rows: int) -> None:
    session = opened(onnx_bundle, provider="webgpu")
    x = images(rows)
    for _ in range(2):  # the first inference is profiled, the second is not
        got = session.run({"image": x})["logits"]
        np.testing.assert_allclose(got, logits(x), rtol=1e-3, atol=1e-3)
    session.close()


@pytest.mark.usefixtures("driver")
def test_what_is_left_on_the_cpu_shows_up(onnx_bundle: Path) -> None:
    """All work is on the GPU; onnxruntime-webgpu 1.27 leaves the pooling and its reordering to the CPU."""
    session = opened(onnx_bundle, provider="webgpu")
    placement = session.placement()
    session.close()
    assert placement.mac_shares == {"gpu": 1.0}
    assert placement.compute_ops == 5
    assert placement.inference_precision == "fp32"
    left = placement.left_on_cpu
    assert placement.shares["gpu"] == pytest.approx(1 - sum(left.values()) / 12, abs=0.1)
    if left:
        assert "AveragePool" in left
        assert f"{sum(left.values())} ops on cpu: " in placement.describe()


@pytest.mark.usefixtures("driver")
def test_allow_cpu_false_refuses_a_model_that_is_not_all_on_the_gpu(onnx_bundle: Path) -> None:
    session = opened(onnx_bundle, provider="webgpu")
    left = session.placement().left_on_cpu
    session.close()
    if not left:
        opened(onnx_bundle, provider="webgpu", allow_cpu=False).close()
        return
    with pytest.raises(UnsupportedModel, match="cannot run all of"):
        opened(onnx_bundle, provider="webgpu", allow_cpu=False)


def test_without_its_driver_it_is_an_error_and_never_a_cpu(driver: Driver) -> None:
    """In processes of their own: one that has opened the driver keeps it."""
    driver.take_away()
    found = open_in_child("onnxruntime", "gpu", {"provider": "webgpu"})
    assert not found.ok
    assert "Failed to get a WebGPU adapter" in (found.error or "")
    assert not runtime("onnxruntime").probe().opens("gpu")
    driver.give()
    found = open_in_child("onnxruntime", "gpu", {"provider": "webgpu"})
    assert found.ok, found.error
    assert "on gpu, fp32" in (found.placement or "")
    assert runtime("onnxruntime").probe().opens("gpu")


@pytest.mark.skipif(WEBGPU not in PLUGGED, reason="the provider is built in here")
def test_a_plug_in_that_lists_no_device_is_a_missing_device(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER")
    if list(Path("/dev/dri").glob("renderD*")):
        pytest.skip("this machine has a GPU")
    found = open_in_child("onnxruntime", "gpu", {"provider": "webgpu"})
    assert "onnxruntime-ep-webgpu finds no gpu here: it lists no device" in (found.error or "")
    assert "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER" in (found.hint or "")


@pytest.mark.parametrize(
    ("provider", "device", "package"),
    [("qnn", "npu", "onnxruntime-qnn"), ("openvino", "gpu", "onnxruntime-ep-openvino")],
)
def test_other_plug_ins_without_their_hardware(
    onnx_bundle: Path, provider: str, device: str, package: str
) -> None:
    if package not in {p.package for p in installed_plug_ins()}:
        pytest.skip(f"{package} is not installed")
    if open_in_child("onnxruntime", device, {"provider": provider}).ok:
        pytest.skip(f"this machine has a {device}")
    with pytest.raises(DeviceUnavailable, match=f"{package} finds no {device} here"):
        opened(onnx_bundle, device, provider=provider)


@pytest.mark.usefixtures("driver")
def test_a_second_gpu_is_not_the_first(onnx_bundle: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"gpu\.1"):
        opened(onnx_bundle, "gpu.1", provider="webgpu")


def test_the_device_is_taken_away_and_given_back(onnx_bundle: Path, driver: Driver) -> None:
    taken_away_and_given_back(onnx_bundle, driver)
