"""What is wrong on a machine, or could be better, with the command that mends it. Rules on plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from edgeserve.devices import Machine
from edgeserve.devices.accelerators import Accelerator
from edgeserve.devices.names import device_kind, is_on
from edgeserve.devices.readings import SensorReading
from edgeserve.runtimes.probing import Probe

Level = Literal["error", "warning", "note"]
# Share of the limit from which a temperature is worth a word.
_HOT: Final = 0.9
_LITTLE_MEMORY: Final = 300_000_000


class DoctorFinding(msgspec.Struct, frozen=True):
    """One remark. An error makes `edgeserve doctor` fail. `command` mends it; None: nothing to type."""

    level: Level
    about: str
    text: str
    command: str | None = None


class MachineMemory(msgspec.Struct, frozen=True):
    """Bytes; `limit` is the container's. None: the system does not tell."""

    total: int | None
    available: int | None
    limit: int | None


def probe_findings(probes: Sequence[Probe], required: Iterable[str]) -> Iterator[DoctorFinding]:
    """Engines that do not even run on the CPU, and required devices that nothing opens."""
    for probe in probes:
        if probe.device == "cpu" and not probe.ok:
            yield DoctorFinding(
                "error",
                probe.runtime,
                f"{probe.runtime} does not run on the CPU: {probe.error}",
                _REINSTALL.get(probe.runtime),
            )
    for device in required:
        tried = [p for p in probes if is_on(p.device, device)]
        if not any(p.ok for p in tried):
            reasons = "; ".join(dict.fromkeys(p.error or "" for p in tried))
            yield DoctorFinding(
                "error",
                device,
                f"no runtime opens '{device}', which is required"
                + (f": {reasons}" if reasons else ""),
            )


_REINSTALL: Final = {
    "onnxruntime": "pip install --force-reinstall onnxruntime",
    "openvino": "pip install --force-reinstall 'edgeserve[openvino]'",
    "litert": "pip install --force-reinstall ai-edge-litert",
}


def accelerator_findings(
    found: Sequence[Accelerator],
    probes: Sequence[Probe],
    libraries: Mapping[str, str | None],
    vulkan: Sequence[str],
) -> Iterator[DoctorFinding]:
    """Accelerators that the kernel shows and no engine opens: what to install, or to permit."""
    for here in found:
        if not here.usable:
            yield DoctorFinding(
                "warning",
                here.node,
                f"{here.node} ({here.vendor or 'unknown vendor'}) may not be opened by this user",
                "sudo usermod -aG render,video $USER   # then log in again",
            )
    for device in ("gpu", "npu"):
        mine = [a for a in found if a.kind == device and a.usable]
        if not mine or any(p.ok and device_kind(p.device) == device for p in probes):
            continue
        vendors = list(dict.fromkeys(a.vendor or "" for a in mine))
        yield DoctorFinding(
            "warning",
            device,
            f"there is a {device} ({', '.join(v or 'unknown vendor' for v in vendors)}), but no runtime opens it",
            _advice(device, vendors, libraries, vulkan),
        )


def _advice(
    device: str,
    vendors: Sequence[str],
    libraries: Mapping[str, str | None],
    vulkan: Sequence[str],
) -> str:
    if device == "npu":
        if "Intel" in vendors:
            return (
                "pip install 'edgeserve[openvino]'   # and the driver: "
                "https://github.com/intel/linux-npu-driver/releases"
            )
        if "Google" in vendors:
            return "sudo apt-get install libedgetpu1-std   # https://coral.ai/docs/accelerator/get-started/"
        return "edgeserve targets   # names what each NPU needs"
    if "NVIDIA" in vendors:
        if libraries.get("CUDA") is None:
            return "nvidia-smi   # libcuda.so.1 is missing: install NVIDIA's driver"
        return "pip install onnxruntime-ep-nv-tensorrt-rtx   # beside onnxruntime; Ampere and later"
    if "Intel" in vendors:
        return "sudo apt-get install intel-opencl-icd && pip install 'edgeserve[openvino]'"
    if libraries.get("Vulkan") is None or not vulkan:
        return "sudo apt-get install libvulkan1 mesa-vulkan-drivers && pip install onnxruntime-ep-webgpu"
    return "pip install onnxruntime-ep-webgpu   # beside onnxruntime; or ai-edge-litert, which brings its own"


def machine_findings(
    here: Machine, all_cores: int, memory: MachineMemory, readings: Sequence[SensorReading]
) -> Iterator[DoctorFinding]:
    """What makes a machine slow or small though its devices open."""
    if here.cores < all_cores:
        yield DoctorFinding(
            "note",
            "cpu",
            f"this process may use {here.cores} of {all_cores} cores (affinity, or the container's limit)",
        )
    room = [b for b in (memory.available, memory.limit) if b is not None]
    if room and min(room) < _LITTLE_MEMORY:
        yield DoctorFinding(
            "warning",
            "memory",
            f"{min(room) / 1e6:.0f} MB are left: onnxruntime or openvino with a model may not fit",
            "pip install 'edgeserve[litert]'   # takes about 60 MB with a small model",
        )
    if here.cpu_features is not None and here.arch in ("x86_64", "AMD64"):
        if "avx2" not in here.cpu_features:
            yield DoctorFinding(
                "warning", "cpu", "the CPU has no AVX2: int8 is hardly faster than fp32"
            )
        elif here.int8_saturates:
            yield DoctorFinding(
                "note",
                "cpu",
                "the CPU has no VNNI: int8 sums may saturate there",
                "edgeserve convert MODEL --target cpu-x86-avx2   # quantizes with 7-bit weights",
            )
    yield from _reading_findings(readings)


def _reading_findings(readings: Sequence[SensorReading]) -> Iterator[DoctorFinding]:
    for reading in readings:
        if reading.kind == "governor" and reading.value == "powersave":
            yield DoctorFinding(
                "note",
                "clock",
                "the CPU's governor is powersave: latencies vary with load",
                "sudo cpupower frequency-set -g performance",
            )
        if reading.kind == "battery" and "discharging" in reading.name:
            yield DoctorFinding("note", "power", f"on battery ({reading.name} at {reading.text()})")
        if (
            reading.kind == "temperature"
            and isinstance(reading.value, float)
            and reading.limit
            and reading.value >= _HOT * reading.limit
        ):
            yield DoctorFinding(
                "warning",
                "temperature",
                f"{reading.name} is at {reading.text()}: it will throttle",
            )
