"""Names and features of CPUs, from /proc/cpuinfo of real machines (shortened)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.devices.cpu import ARM_FEATURES, X86_FEATURES, cpu_features, cpu_name

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8
"""
ATOM = """processor\t: 0
model name\t: Intel(R) Atom(TM) Processor E3950 @ 1.60GHz
flags\t\t: fpu sse4_2 popcnt aes
"""
RASPBERRY_PI_4 = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08
"""
RASPBERRY_PI_5 = RASPBERRY_PI_4.replace("0xd08", "0xd0b").replace(
    "cpuid", "atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
BIG_LITTLE = RASPBERRY_PI_4.replace("0xd08", "0xd05").replace("cpuid", "asimddp") + RASPBERRY_PI_5
GRAVITON_3 = RASPBERRY_PI_5.replace("0xd0b", "0xd40").replace("asimddp", "asimddp sve i8mm bf16")

CASES = {
    "xeon": (XEON, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", X86_FEATURES),
    "atom": (ATOM, "Intel(R) Atom(TM) Processor E3950 @ 1.60GHz", ()),
    "raspberry pi 4": (RASPBERRY_PI_4, "Cortex-A72", ()),
    "raspberry pi 5": (RASPBERRY_PI_5, "Cortex-A76", ("asimddp",)),
    "big.LITTLE": (BIG_LITTLE, "Cortex-A55 + Cortex-A76", ("asimddp",)),
    "one kind of core lacks dot products": (
        RASPBERRY_PI_4 + RASPBERRY_PI_5,
        "Cortex-A72 + Cortex-A76",
        (),
    ),
    "graviton 3": (GRAVITON_3, "Neoverse-V1", ARM_FEATURES),
    "a part nobody listed": (RASPBERRY_PI_4.replace("0xd08", "0xfff"), None, ()),
    "another implementer": (RASPBERRY_PI_4.replace("0x41", "0x61"), None, ()),
    "nothing": ("", None, None),
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")


@linux
@pytest.mark.parametrize("name", CASES)
def test_cpuinfo(tmp_path: Path, name: str) -> None:
    text, cpu, features = CASES[name]
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_name(tmp_path) == cpu
    assert cpu_features(tmp_path) == features


@linux
def test_without_cpuinfo_nothing_is_guessed(tmp_path: Path) -> None:
    assert cpu_name(tmp_path) is None
    assert cpu_features(tmp_path) is None


@linux
@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
def test_this_machine_agrees_with_lscpu() -> None:
    said = subprocess.run(
        ["lscpu"], env={"LC_ALL": "C"}, capture_output=True, text=True, check=True
    ).stdout
    flags = next((line for line in said.splitlines() if line.startswith("Flags:")), "").split()
    assert set(cpu_features() or ()) == set(flags) & {*X86_FEATURES, *ARM_FEATURES}
