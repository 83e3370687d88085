"""Looking at a machine as `edgeserve doctor` does: what is installed, what opens, what is in the way."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from typing import Final

import msgspec

from edgeserve.bundle.manifest import Option
from edgeserve.devices import Machine, machine
from edgeserve.devices.accelerators import (
    Accelerator,
    accelerators,
    driver_libraries,
    vulkan_drivers,
)
from edgeserve.devices.cgroup import cpu_quota, memory_limit
from edgeserve.devices.readings import EnergyMeter, SensorReading, readings
from edgeserve.diagnosis.findings import (
    DoctorFinding,
    MachineMemory,
    accelerator_findings,
    machine_findings,
    probe_findings,
)
from edgeserve.diagnosis.packages import (
    InstalledPackage,
    installed_packages,
    onnxruntime_on_disk,
    package_findings,
)
from edgeserve.runtimes import runtime_names
from edgeserve.runtimes.onnx_providers import accelerators_to_try
from edgeserve.runtimes.probing import Probe, onnxruntime_providers, open_in_children
from edgeserve.version import __version__

BUILT_IN: Final = ("litert", "onnxruntime", "openvino")
_PACKAGE_OF: Final = {
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
}


class Diagnosis(msgspec.Struct, frozen=True):
    """All that was found. `cpu_quota` is the container's limit in cores; `libraries` maps an API to the
    driver library that loads, None where none does; `vulkan` lists the drivers' manifests."""

    edgeserve: str
    python: str
    machine: Machine
    cores_of_machine: int
    cpu_quota: float | None
    memory: MachineMemory
    packages: tuple[InstalledPackage, ...]
    accelerators: tuple[Accelerator, ...]
    libraries: dict[str, str | None]
    vulkan: tuple[str, ...]
    probes: tuple[Probe, ...]
    readings: tuple[SensorReading, ...]
    findings: tuple[DoctorFinding, ...]

    @property
    def ok(self) -> bool:
        return all(f.level != "error" for f in self.findings)


def diagnose(required: Sequence[str] = (), timeout_s: float = 20.0) -> Diagnosis:
    """Look at everything, and open every device that an installed engine knows. Takes a few seconds;
    a device that hangs takes `timeout_s`."""
    meter = EnergyMeter()
    packages = installed_packages()
    probes = probe_everything(packages, timeout_s)
    here, all_cores = machine(), os.cpu_count() or 1
    memory = _memory()
    nodes, libraries, vulkan = accelerators(), driver_libraries(), vulkan_drivers()
    read = (*readings(), *meter.stop())
    findings = (
        *package_findings(packages, onnxruntime_on_disk(), _our_requirements()),
        *probe_findings(probes, required),
        *accelerator_findings(nodes, probes, libraries, vulkan),
        *machine_findings(here, all_cores, memory, read),
    )
    return Diagnosis(
        edgeserve=__version__,
        python=platform.python_version(),
        machine=here,
        cores_of_machine=all_cores,
        cpu_quota=cpu_quota(),
        memory=memory,
        packages=packages,
        accelerators=nodes,
        libraries=libraries,
        vulkan=vulkan,
        probes=tuple(probes),
        readings=read,
        findings=findings,
    )


def probe_everything(packages: Sequence[InstalledPackage], timeout_s: float) -> list[Probe]:
    """Open the CPU and every accelerator with each engine that is installed."""
    names = {p.name for p in packages}
    wanted: list[tuple[str, str, dict[str, Option]]] = [
        (name, "cpu", {})
        for name in runtime_names()
        if name not in BUILT_IN or _is_installed(name, packages)
    ]
    if _is_installed("onnxruntime", packages):
        built_in = onnxruntime_providers(timeout_s)
        wanted += [("onnxruntime", d, {"provider": p}) for d, p in accelerators_to_try(built_in)]
    if "openvino" in names:
        wanted += [("openvino", "gpu", {}), ("openvino", "npu", {})]
    if "ai-edge-litert" in names:
        wanted += [("litert", "gpu", {}), ("litert", "npu", {})]
    return open_in_children(wanted, timeout_s)


def _is_installed(name: str, packages: Sequence[InstalledPackage]) -> bool:
    if name == "onnxruntime":
        return any(p.brings_onnxruntime for p in packages)
    return any(p.name in _PACKAGE_OF[name] for p in packages)


def _memory() -> MachineMemory:
    try:
        import psutil

        now = psutil.virtual_memory()
        return MachineMemory(int(now.total), int(now.available), memory_limit())
    except (ImportError, OSError):
        return MachineMemory(None, None, memory_limit())


def _our_requirements() -> list[str]:
    try:
        return list(requires("edgeserve") or [])
    except PackageNotFoundError:
        return []
