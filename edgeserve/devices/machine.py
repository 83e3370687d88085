"""The machine as one record, for reports, bundles and target detection."""

from __future__ import annotations

import platform

import msgspec

from edgeserve.devices.cgroup import memory_limit, usable_cores
from edgeserve.devices.cpu import cpu_features, cpu_name


class Machine(msgspec.Struct, frozen=True):
    """What this machine has, for this process. None: the system does not tell.

    `arch` is `platform.machine()`; `cpu_features` are named as in Linux' /proc/cpuinfo; `cores` and
    `memory_bytes` are within affinity and container limits.
    """

    os: str
    arch: str
    cpu: str | None
    cpu_features: tuple[str, ...] | None
    cores: int
    memory_bytes: int | None

    @property
    def int8_saturates(self) -> bool:
        """Whether sums of int8 products may saturate: on x86 with AVX2 or AVX-512 and without VNNI
        (onnxruntime's documentation, "Quantize ONNX models", on U8S8). False where it is not known."""
        if self.cpu_features is None or self.arch not in ("x86_64", "AMD64"):
            return False
        features = set(self.cpu_features)
        return "avx2" in features and not {"avx512_vnni", "avx_vnni"} & features

    def describe(self) -> str:
        """One line: `AMD EPYC (x86_64), 2 cores, 25.1 GB, avx2 avx512_vnni`."""
        parts = [f"{self.cpu} ({self.arch})" if self.cpu else self.arch]
        parts.append(f"{self.cores} core{'s' if self.cores != 1 else ''}")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 1e9:.1f} GB")
        if self.cpu_features:
            parts.append(" ".join(self.cpu_features))
        return ", ".join(parts)


def machine() -> Machine:
    """Ask the system; takes milliseconds."""
    return Machine(
        os=f"{platform.system()} {platform.release()}".strip(),
        arch=platform.machine(),
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
    )


def _memory_bytes() -> int | None:
    try:
        import psutil

        total = int(psutil.virtual_memory().total)
    except (ImportError, OSError):
        return memory_limit()
    limit = memory_limit()
    return total if limit is None else min(total, limit)
