"""Accelerators that the kernel shows (GPUs, NPUs, Edge TPUs) and the drivers' libraries beside them.

That a node is there does not mean that an engine opens it: `edgeserve.runtimes` finds that out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

ROOT: Final = Path("/")
# PCI vendors, https://pci-ids.ucw.cz/
_VENDORS: Final = {
    "0x8086": "Intel",
    "0x10de": "NVIDIA",
    "0x1002": "AMD",
    "0x1022": "AMD",
    "0x1414": "Microsoft",
    "0x1af4": "virtio",
    "0x106b": "Apple",
    "0x13b5": "Arm",
    "0x17cb": "Qualcomm",
    "0x1ac1": "Google",
}
# Vendor and product of the Coral accelerator before and after its firmware is loaded:
# https://coral.ai/docs/accelerator/get-started/
_CORAL_USB: Final = {("1a6e", "089a"), ("18d1", "9302")}
# Library by what it is the loader or driver of.
LIBRARIES: Final = {
    "Vulkan": ("libvulkan.so.1",),
    "OpenCL": ("libOpenCL.so.1", "libOpenCL.so"),
    "Level Zero": ("libze_loader.so.1",),
    "CUDA": ("libcuda.so.1",),
    "Edge TPU": ("libedgetpu.so.1",),
}


class Accelerator(msgspec.Struct, frozen=True):
    """One device node. `vendor` and `driver` are None where the kernel does not tell; `usable` is whether
    this process may open it."""

    kind: Literal["gpu", "npu"]
    node: str
    vendor: str | None
    driver: str | None
    usable: bool

    def describe(self) -> str:
        parts = [self.vendor or "unknown vendor"]
        if self.driver:
            parts.append(f"driver {self.driver}")
        if not self.usable:
            parts.append("not permitted to this user")
        return ", ".join(parts)


def accelerators(root: Path = ROOT) -> tuple[Accelerator, ...]:
    """All nodes of accelerators, in order of their names."""
    return (*_gpus(root), *_npus(root))


def _gpus(root: Path) -> Iterator[Accelerator]:
    for node in _nodes(root, "dev/dri", "renderD*"):
        about = root / "sys/class/drm" / node.name / "device"
        yield _accelerator("gpu", root, node, about)
    for node in _nodes(root, "dev", "nvidia[0-9]*"):
        yield Accelerator("gpu", _shown(root, node), "NVIDIA", "nvidia", _usable(node))
    for node in _nodes(root, "dev", "dxg"):  # Windows' GPU inside WSL
        yield Accelerator("gpu", _shown(root, node), "Microsoft", "dxgkrnl", _usable(node))


def _npus(root: Path) -> Iterator[Accelerator]:
    for node in _nodes(root, "dev/accel", "accel*"):
        yield _accelerator("npu", root, node, root / "sys/class/accel" / node.name / "device")
    for node in _nodes(root, "dev", "apex_*"):  # Edge TPU on PCIe
        yield Accelerator("npu", _shown(root, node), "Google", "apex", _usable(node))
    for device in _nodes(root, "sys/bus/usb/devices", "*"):
        if (_word(device / "idVendor"), _word(device / "idProduct")) in _CORAL_USB:
            yield Accelerator("npu", f"USB {device.name}", "Google", None, True)


def _accelerator(kind: Literal["gpu", "npu"], root: Path, node: Path, about: Path) -> Accelerator:
    vendor = _word(about / "vendor")
    driver = about / "driver"
    return Accelerator(
        kind,
        _shown(root, node),
        _VENDORS.get(vendor, vendor) if vendor else _compatible(about),
        driver.resolve().name if driver.exists() else None,
        _usable(node),
    )


def _compatible(about: Path) -> str | None:
    """What a device tree calls a GPU that is not on PCI: `arm,mali-g610`."""
    text = _word(about / "of_node" / "compatible")
    return text.split("\0")[0] or None if text else None


def _nodes(root: Path, folder: str, pattern: str) -> list[Path]:
    try:
        return sorted((root / folder).glob(pattern))
    except OSError:
        return []


def _shown(root: Path, node: Path) -> str:
    return "/" + node.relative_to(root).as_posix()


def _usable(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def _word(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", errors="replace").strip() or None
    except OSError:
        return None


def driver_libraries() -> dict[str, str | None]:
    """Which of the libraries that engines look for can be loaded here: name of the API to file."""
    return {api: next(filter(_loads, names), None) for api, names in LIBRARIES.items()}


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def vulkan_drivers(root: Path = ROOT) -> tuple[str, ...]:
    """The manifests of Vulkan drivers that the loader reads.

    https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderDriverInterface.md
    """
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        if named := os.environ.get(name):
            return tuple(file for file in named.split(os.pathsep) if Path(file).exists())
    folders = ("etc/vulkan/icd.d", "usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d")
    return tuple(_shown(root, f) for folder in folders for f in _nodes(root, folder, "*.json"))
