"""What doctor concludes from what it found."""

from __future__ import annotations

import pytest

from edgeserve.devices import Machine
from edgeserve.devices.accelerators import Accelerator
from edgeserve.devices.readings import SensorReading
from edgeserve.diagnosis.findings import (
    MachineMemory,
    accelerator_findings,
    machine_findings,
    probe_findings,
)
from edgeserve.runtimes.probing import Probe

PLENTY = MachineMemory(8_000_000_000, 6_000_000_000, None)
LIBRARIES: dict[str, str | None] = {"Vulkan": "libvulkan.so.1", "CUDA": "libcuda.so.1"}


def probe(device: str, error: str | None = None, runtime: str = "onnxruntime") -> Probe:
    return Probe(runtime, device, {}, ok=error is None, error=error)


def gpu(vendor: str | None, *, usable: bool = True) -> Accelerator:
    return Accelerator("gpu", "/dev/dri/renderD128", vendor, "driver", usable)


def here(*features: str, arch: str = "x86_64", cores: int = 4) -> Machine:
    return Machine("Linux 6.6", arch, "CPU", features, cores, 8_000_000_000)


def test_an_engine_that_does_not_run_on_the_cpu_is_an_error() -> None:
    (finding,) = probe_findings([probe("cpu", "its process dies of SIGILL")], ())
    assert (finding.level, finding.about) == ("error", "onnxruntime")
    assert finding.text == "onnxruntime does not run on the CPU: its process dies of SIGILL"
    assert finding.command == "pip install --force-reinstall onnxruntime"


def test_an_accelerator_that_does_not_open_is_no_error_until_it_is_required() -> None:
    probes = [probe("cpu"), probe("gpu", "no adapters"), probe("gpu.1", "no adapters")]
    assert list(probe_findings(probes, ())) == []
    (finding,) = probe_findings(probes, ["gpu"])
    assert finding.level == "error"
    assert finding.text == "no runtime opens 'gpu', which is required: no adapters"
    assert list(probe_findings([*probes, probe("gpu")], ["gpu"])) == []


def test_what_nothing_even_tried_is_required_in_vain() -> None:
    (finding,) = probe_findings([probe("cpu")], ["npu"])
    assert finding.text == "no runtime opens 'npu', which is required"


@pytest.mark.parametrize(
    ("vendor", "libraries", "command"),
    [
        ("NVIDIA", LIBRARIES, "pip install onnxruntime-ep-nv-tensorrt-rtx"),
        ("NVIDIA", LIBRARIES | {"CUDA": None}, "nvidia-smi"),
        (
            "Intel",
            LIBRARIES,
            "sudo apt-get install intel-opencl-icd && pip install 'edgeserve[open",
        ),
        ("AMD", LIBRARIES, "pip install onnxruntime-ep-webgpu"),
        (
            "AMD",
            LIBRARIES | {"Vulkan": None},
            "sudo apt-get install libvulkan1 mesa-vulkan-drivers",
        ),
    ],
)
def test_a_gpu_that_nothing_opens_gets_a_command(
    vendor: str, libraries: dict[str, str | None], command: str
) -> None:
    (finding,) = accelerator_findings([gpu(vendor)], [probe("cpu")], libraries, ["icd.json"])
    assert finding.level == "warning"
    assert finding.command is not None
    assert finding.command.startswith(command)


def test_a_gpu_that_opens_needs_nothing() -> None:
    assert list(accelerator_findings([gpu("AMD")], [probe("gpu")], LIBRARIES, ["icd.json"])) == []


def test_a_node_without_permission_names_the_group() -> None:
    (finding,) = accelerator_findings([gpu("AMD", usable=False)], [], LIBRARIES, [])
    assert finding.command is not None
    assert "usermod -aG render" in finding.command


@pytest.mark.parametrize(
    ("machine", "all_cores", "memory", "readings", "texts"),
    [
        (here("avx2", "avx_vnni"), 4, PLENTY, [], []),
        (here("avx2", "avx_vnni"), 8, PLENTY, [], ["this process may use 4 of 8 cores"]),
        (here("avx2"), 4, PLENTY, [], ["the CPU has no VNNI"]),
        (here(), 4, PLENTY, [], ["the CPU has no AVX2"]),
        (here(arch="aarch64"), 4, PLENTY, [], []),
        (
            here("avx2", "avx_vnni"),
            4,
            MachineMemory(8_000_000_000, 6_000_000_000, 200_000_000),
            [],
            ["200 MB are left"],
        ),
        (
            here("avx2", "avx_vnni"),
            4,
            PLENTY,
            [
                SensorReading("governor", "cpu0", "powersave", ""),
                SensorReading("battery", "BAT0, discharging", 57.0, "%"),
                SensorReading("temperature", "cpu", 84.0, "°C", 85.0),
                SensorReading("temperature", "ssd", 40.0, "°C", 85.0),
                SensorReading("temperature", "soc", 200.0, "°C"),
            ],
            [
                "the CPU's governor is powersave",
                "on battery (BAT0",
                "cpu is at 84 °C (limit 85 °C)",
            ],
        ),
    ],
)
def test_what_makes_a_machine_slow_or_small(
    machine: Machine,
    all_cores: int,
    memory: MachineMemory,
    readings: list[SensorReading],
    texts: list[str],
) -> None:
    found = list(machine_findings(machine, all_cores, memory, readings))
    assert len(found) == len(texts)
    for finding, text in zip(found, texts, strict=True):
        assert finding.text.startswith(text)
        assert finding.level != "error"
