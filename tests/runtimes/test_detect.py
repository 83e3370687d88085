"""Which targets a machine satisfies: decided from what runtimes report, and really asked here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.devices import Machine, machine
from edgeserve.errors import DeviceUnavailable, TargetError
from edgeserve.runtimes import RuntimeInfo, runtime, runtime_names
from edgeserve.runtimes.base import DeviceInfo
from edgeserve.runtimes.detect import (
    check_target,
    detect_target,
    explain_target,
    probe_all,
    resolve_target,
)
from edgeserve.targets.schema import load_target
from tests.distributions import write_distribution

Probes = dict[str, RuntimeInfo]


def here(arch: str, *features: str, cpu: str | None = None) -> Machine:
    return Machine("Linux 6.6", arch, cpu, features or None, 4, 8_000_000_000)


def probes(**devices: dict[str, str]) -> Probes:
    """What runtimes open: `openvino={"cpu": "detail", ...}`; `gpu_1` stands for `gpu.1`."""
    return {
        name: RuntimeInfo(
            name,
            "1.0",
            tuple(DeviceInfo(d.replace("_", "."), detail) for d, detail in opened.items()),
        )
        for name, opened in devices.items()
    }


ORT = {"cpu": "CPUExecutionProvider"}
CUDA = {**ORT, "gpu": "CUDAExecutionProvider"}
WEBGPU = {**ORT, "gpu": "WebGpuExecutionProvider"}
INTEL = {"cpu": "Core Ultra 7", "gpu": "Arc", "npu": "AI Boost"}


@pytest.mark.parametrize(
    ("arch", "found", "name"),
    [
        ("x86_64", probes(onnxruntime=ORT), "cpu-x86"),
        ("x86_64", probes(onnxruntime=ORT, openvino={"cpu": "Xeon"}), "cpu-x86"),
        ("AMD64", probes(openvino={"cpu": "Xeon"}), "cpu-x86"),
        ("aarch64", probes(onnxruntime=ORT), "cpu-arm64"),
        ("arm64", probes(litert={"cpu": "XNNPACK"}), "cpu-arm64"),
        ("x86_64", probes(onnxruntime=ORT, openvino={"cpu": "i5", "gpu": "Iris Xe"}), "intel-gpu"),
        ("x86_64", probes(onnxruntime=ORT, openvino=INTEL), "intel-npu"),
        ("x86_64", probes(onnxruntime=CUDA, openvino=INTEL), "nvidia-gpu"),
        ("aarch64", probes(onnxruntime=CUDA), "nvidia-gpu"),
        # WebGPU also answers on software drivers: it is chosen by name, never by itself.
        ("x86_64", probes(onnxruntime=WEBGPU), "cpu-x86"),
        # A second GPU without a first is not what the target's entry names.
        ("x86_64", probes(onnxruntime=ORT, openvino={"gpu_1": "Arc"}), "cpu-x86"),
    ],
)
def test_auto_takes_the_most_capable_target(arch: str, found: Probes, name: str) -> None:
    assert detect_target(here(arch), found).name == name


@pytest.mark.parametrize(
    ("machine_here", "name"),
    [
        (here("x86_64", "avx2"), "cpu-x86-avx2"),
        (here("x86_64", "avx2", "avx512f"), "cpu-x86-avx2"),
        (here("x86_64", "avx2", "avx_vnni"), "cpu-x86-vnni"),
        (here("AMD64", "avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "cpu-x86-vnni"),
        (here("x86_64", "avx2", "avx512_vnni", "amx_int8", "amx_bf16"), "cpu-x86-amx"),
        # Either alone is not AMX as the target means it.
        (here("x86_64", "avx2", "avx512_vnni", "amx_bf16"), "cpu-x86-vnni"),
        (here("x86_64", "avx512_bf16"), "cpu-x86"),
        (here("aarch64", cpu="Cortex-A72"), "raspberry-pi-4"),
        (here("aarch64", "asimddp", cpu="Cortex-A76"), "raspberry-pi-5"),
        # RK3588: not a Raspberry Pi, though it has such cores.
        (here("aarch64", "asimddp", cpu="Cortex-A55 + Cortex-A76"), "cpu-arm64"),
        (here("aarch64", "asimddp", "i8mm", "bf16", "sve", cpu="Neoverse-V1"), "graviton"),
        (here("aarch64", "asimddp", cpu="Neoverse-N1"), "graviton"),
        (here("aarch64", "asimddp", cpu="Cortex-A78AE"), "cpu-arm64"),
    ],
)
def test_auto_takes_the_cpu_target_that_asks_for_most(machine_here: Machine, name: str) -> None:
    assert detect_target(machine_here, probes(onnxruntime=ORT)).name == name


@pytest.mark.parametrize(
    ("name", "machine_here", "reason"),
    [
        ("cpu-x86-vnni", here("x86_64", "avx2"), "the CPU lacks avx512_vnni or avx_vnni"),
        ("cpu-x86-amx", here("x86_64", "avx2"), "the CPU lacks amx_int8, amx_bf16"),
        ("cpu-x86-avx2", here("AMD64"), "the system does not report the CPU's features"),
        ("raspberry-pi-4", here("aarch64"), "the CPU is unknown, not Cortex-A72"),
        (
            "graviton",
            here("aarch64", "asimddp", cpu="Cortex-A76"),
            "the CPU is Cortex-A76, not Neoverse-N1 or Neoverse-V1",
        ),
    ],
)
def test_a_cpu_that_is_not_the_target_s(name: str, machine_here: Machine, reason: str) -> None:
    check = check_target(load_target(name), machine_here, probes(onnxruntime=ORT))
    assert not check.satisfied
    assert check.reason == reason


@pytest.mark.parametrize(
    ("arch", "found"), [("riscv64", probes(onnxruntime=ORT)), ("x86_64", probes(litert=ORT))]
)
def test_a_machine_that_fits_no_target(arch: str, found: Probes) -> None:
    with pytest.raises(DeviceUnavailable, match=f"no shipped target fits this machine .{arch}"):
        detect_target(here(arch), found)


@pytest.mark.parametrize(
    ("name", "arch", "found", "satisfied", "reason"),
    [
        ("cpu-x86", "x86_64", probes(onnxruntime=ORT), True, "opens CPUExecutionProvider"),
        ("cpu-x86", "aarch64", probes(onnxruntime=ORT), False, "is aarch64, not x86_64 or AMD64"),
        ("cpu-x86", "x86_64", {}, False, "no runtime adapter is called openvino"),
        # The CPU fallback of a GPU target does not make a GPU.
        (
            "intel-gpu",
            "x86_64",
            probes(openvino={"cpu": "Xeon"}, onnxruntime=ORT),
            False,
            "openvino 1.0 opens cpu (Xeon) here, not gpu",
        ),
        (
            "nvidia-gpu",
            "x86_64",
            probes(onnxruntime=WEBGPU),
            False,
            "not gpu (CUDAExecutionProvider)",
        ),
        ("webgpu", "arm64", probes(onnxruntime=WEBGPU), True, "opens WebGpuExecutionProvider"),
        ("mobile-cpu", "aarch64", probes(litert=ORT), False, "without edgeserve"),
    ],
)
def test_check(name: str, arch: str, found: Probes, satisfied: bool, reason: str) -> None:
    check = check_target(load_target(name), here(arch), found)
    assert check.satisfied is satisfied
    assert reason in check.reason
    assert len(check.entries) == len(check.target.chain)


def test_a_missing_engine_is_reported_with_its_hint() -> None:
    missing = RuntimeInfo("openvino", None, problem="not installed", hint="pip install openvino")
    check = check_target(load_target("intel-npu"), here("x86_64"), {"openvino": missing})
    assert not check.satisfied
    assert (check.entries[0].reason, check.entries[0].hint) == (
        "not installed",
        "pip install openvino",
    )


def test_a_driver_s_message_is_in_the_reason() -> None:
    broken = RuntimeInfo("onnxruntime", "1.0", (), problem="CUDA: libcudnn.so.9 is missing")
    check = check_target(load_target("nvidia-gpu"), here("x86_64"), {"onnxruntime": broken})
    assert check.reason.endswith(
        "opens no device here, not gpu (CUDAExecutionProvider): CUDA: libcudnn.so.9 is missing"
    )


def test_this_machine_has_a_target() -> None:
    found = detect_target()
    assert found.runs_on(machine().arch)
    assert resolve_target("auto") == found


def test_resolve_takes_names_and_paths(tmp_path: Path) -> None:
    assert resolve_target("webgpu").name == "webgpu"
    with pytest.raises(TargetError, match="does not exist"):
        resolve_target(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", ["nvidia-gpu", "intel-gpu", "intel-npu", "webgpu"])
def test_explaining_gives_the_engine_s_own_message(name: str) -> None:
    found = probe_all()
    target = load_target(name)
    first = target.chain[0]
    info = found[first.runtime]
    if not info.installed or check_target(target, machine(), found).entries[0].ok:
        pytest.skip(f"{first.runtime} is missing, or opens {first.device} here")
    check = explain_target(target, machine(), found)
    assert not check.entries[0].ok
    assert check.entries[0].reason.startswith(f"{first.runtime} cannot open")
    assert len(check.entries[0].reason) > len(f"{first.runtime} cannot open '{first.device}': ")


@pytest.fixture
def broken_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = write_distribution(
        tmp_path / "site",
        "acme_runtime",
        "edgeserve.runtimes",
        "acme = acme_runtime:Acme",
        "class Acme:\n    def probe(self):\n        raise RuntimeError('no licence')\n",
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "acme_runtime", raising=False)
    runtime_names.cache_clear()
    runtime.cache_clear()
    yield
    runtime_names.cache_clear()
    runtime.cache_clear()


@pytest.mark.usefixtures("broken_adapter")
def test_an_adapter_that_breaks_does_not_stop_the_others() -> None:
    found = probe_all()
    assert found["acme"].problem == "its adapter fails: no licence"
    assert found["onnxruntime"].opens("cpu")
