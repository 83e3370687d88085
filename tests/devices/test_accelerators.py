"""Accelerators from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.devices.accelerators import (
    LIBRARIES,
    Accelerator,
    accelerators,
    driver_libraries,
    vulkan_drivers,
)


def node(root: Path, path: str, **about: str) -> None:
    """A device node, with the files about it in /sys and its driver."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("")
    name = Path(path).name
    folder = root / "sys/class" / ("drm" if "dri" in path else "accel") / name / "device"
    folder.mkdir(parents=True)
    for file, text in about.items():
        if file == "driver":
            driver = root / "sys/bus/pci/drivers" / text
            driver.mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(driver)
        else:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text + "\n")


def test_gpus_and_npus_with_vendor_and_driver(tmp_path: Path) -> None:
    node(tmp_path, "dev/dri/renderD128", vendor="0x8086", driver="i915")
    node(tmp_path, "dev/dri/renderD129", vendor="0x1002", driver="amdgpu")
    node(tmp_path, "dev/accel/accel0", vendor="0x8086", driver="intel_vpu")
    (tmp_path / "dev/nvidia0").write_text("")
    (tmp_path / "dev/nvidiactl").write_text("")  # no GPU of its own
    (tmp_path / "dev/apex_0").write_text("")
    assert [(a.kind, a.node, a.vendor, a.driver) for a in accelerators(tmp_path)] == [
        ("gpu", "/dev/dri/renderD128", "Intel", "i915"),
        ("gpu", "/dev/dri/renderD129", "AMD", "amdgpu"),
        ("gpu", "/dev/nvidia0", "NVIDIA", "nvidia"),
        ("npu", "/dev/accel/accel0", "Intel", "intel_vpu"),
        ("npu", "/dev/apex_0", "Google", "apex"),
    ]


def test_a_gpu_of_a_board_is_named_by_its_device_tree(tmp_path: Path) -> None:
    node(tmp_path, "dev/dri/renderD128", driver="panthor")
    folder = tmp_path / "sys/class/drm/renderD128/device/of_node"
    folder.mkdir()
    (folder / "compatible").write_text("rockchip,rk3588-mali\0arm,mali-valhall-csf\0")
    (gpu,) = accelerators(tmp_path)
    assert gpu.vendor == "rockchip,rk3588-mali"


def test_a_usb_accelerator_is_found_by_its_numbers(tmp_path: Path) -> None:
    for name, vendor, product in (("1-1", "18d1", "9302"), ("1-2", "18d1", "4ee7")):
        folder = tmp_path / "sys/bus/usb/devices" / name
        folder.mkdir(parents=True)
        (folder / "idVendor").write_text(f"{vendor}\n")
        (folder / "idProduct").write_text(f"{product}\n")
    assert accelerators(tmp_path) == (Accelerator("npu", "USB 1-1", "Google", None, True),)


def test_a_bare_machine_has_none(tmp_path: Path) -> None:
    assert accelerators(tmp_path) == ()


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Accelerator("gpu", "n", "Intel", "xe", True), "Intel, driver xe"),
        (Accelerator("gpu", "n", None, None, False), "unknown vendor, not permitted to this user"),
    ],
)
def test_description(found: Accelerator, text: str) -> None:
    assert found.describe() == text


def test_driver_libraries_are_really_loaded() -> None:
    found = driver_libraries()
    assert set(found) == set(LIBRARIES)
    for api, file in found.items():
        assert file is None or file in LIBRARIES[api]


def test_vulkan_s_drivers_are_those_that_its_loader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    installed = tmp_path / "usr/share/vulkan/icd.d/intel_icd.x86_64.json"
    installed.parent.mkdir(parents=True)
    installed.write_text("{}")
    assert vulkan_drivers(tmp_path) == ("/usr/share/vulkan/icd.d/intel_icd.x86_64.json",)
    own = tmp_path / "own.json"
    own.write_text("{}")
    monkeypatch.setenv("VK_ICD_FILENAMES", f"{own}:{tmp_path / 'gone.json'}")
    assert vulkan_drivers(tmp_path) == (str(own),)
