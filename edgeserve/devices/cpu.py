"""The CPU's name and the instruction sets that decide how fast inference is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from edgeserve.devices.cgroup import PROC

# As Linux spells them in /proc/cpuinfo; other systems' names are translated to these.
X86_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
ARM_FEATURES: Final = ("asimddp", "i8mm", "bf16", "sve")
_KNOWN: Final = X86_FEATURES + ARM_FEATURES

# https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_instruction_set_characteristics
_MACOS_ARM: Final = {
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
_MACOS_X86: Final = {
    "avx2": "hw.optional.avx2_0",
    "avx512f": "hw.optional.avx512f",
    "avx512_vnni": "hw.optional.avx512vnni",
}

# Arm's part numbers (MIDR), from the kernel's arch/arm64/include/asm/cputype.h.
_ARM_LTD: Final = "0x41"
_ARM_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


def cpu_name(proc: Path = PROC) -> str | None:
    """The CPU as its vendor calls it; for ARM the kinds of its cores."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    values = _cpuinfo(proc)
    if names := values.get("model name"):
        return names[0]
    if set(values.get("CPU implementer", [])) == {_ARM_LTD}:
        parts = dict.fromkeys(_ARM_PARTS.get(part) for part in values.get("CPU part", []))
        known = [part for part in parts if part is not None]
        return " + ".join(known) if known and len(known) == len(parts) else None
    return None


def cpu_features(proc: Path = PROC) -> tuple[str, ...] | None:
    """The known instruction sets this CPU has; None where the system does not tell."""
    if sys.platform == "darwin":
        return _macos_features()
    values = _cpuinfo(proc)
    per_core = [set(v.split()) for v in values.get("flags") or values.get("Features") or []]
    if not per_core:
        return None
    # Cores of one machine may differ (big.LITTLE); only what all have can be relied on.
    common = set.intersection(*per_core)
    return tuple(feature for feature in _KNOWN if feature in common)


def _cpuinfo(proc: Path) -> dict[str, list[str]]:
    """The values of every key of /proc/cpuinfo, one per core."""
    values: dict[str, list[str]] = {}
    try:
        text = (proc / "cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return values
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), []).append(value.strip())
    return values


def _macos_features() -> tuple[str, ...] | None:
    answers = {f: _sysctl(name) for f, name in (_MACOS_ARM | _MACOS_X86).items()}
    if all(answer is None for answer in answers.values()):
        return None
    return tuple(feature for feature, answer in answers.items() if answer == "1")


def _sysctl(name: str) -> str | None:
    try:
        result = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (result.stdout.strip() or None) if result.returncode == 0 else None
