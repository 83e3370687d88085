"""Temperatures, power and clocks that the kernel lets this process read, without any tool installed.

https://docs.kernel.org/driver-api/thermal/sysfs-api.html, https://docs.kernel.org/power/powercap/powercap.html,
https://docs.kernel.org/hwmon/sysfs-interface.html, https://docs.kernel.org/power/power_supply_class.html
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

SYS: Final = Path("/sys")


class SensorReading(msgspec.Struct, frozen=True):
    """One value. `limit` is where the hardware throttles or shuts down, where it tells."""

    kind: Literal["temperature", "power", "energy", "battery", "clock", "governor"]
    name: str
    value: float | str
    unit: str
    limit: float | None = None

    def text(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        limit = f" (limit {self.limit:.4g} {self.unit})" if self.limit is not None else ""
        return f"{value} {self.unit}".strip() + limit


def readings(sys: Path = SYS) -> tuple[SensorReading, ...]:
    """All that can be read now; takes milliseconds, more where nvidia-smi is."""
    found = [*_thermal(sys), *_hwmon(sys), *_batteries(sys), *_cpufreq(sys)]
    return (*found, *(_nvidia() if sys == SYS else ()))


def _thermal(sys: Path) -> Iterator[SensorReading]:
    for zone in _folders(sys / "class/thermal", "thermal_zone*"):
        value = _number(zone / "temp")
        if value is None:
            continue
        trips = {}
        for file in zone.glob("trip_point_*_type"):
            trip = _number(file.with_name(file.name.replace("_type", "_temp")))
            if trip is not None and trip > 0:
                trips[_word(file)] = trip / 1000
        name = _word(zone / "type") or zone.name
        limit = trips.get("passive") or trips.get("hot") or trips.get("critical")
        yield SensorReading("temperature", name, value / 1000, "°C", limit)


def _hwmon(sys: Path) -> Iterator[SensorReading]:
    for chip in _folders(sys / "class/hwmon", "hwmon*"):
        name = _word(chip / "name") or chip.name
        for file in sorted(chip.glob("temp*_input")):
            if (value := _number(file)) is not None:
                limit = _number(_beside(file, "crit"))
                yield SensorReading(
                    "temperature",
                    f"{name} {_label(file)}",
                    value / 1000,
                    "°C",
                    limit / 1000 if limit else None,
                )
        for pattern in ("power*_average", "power*_input"):
            for file in sorted(chip.glob(pattern)):
                if (value := _number(file)) is not None:
                    limit = _number(_beside(file, "cap"))
                    yield SensorReading(
                        "power",
                        f"{name} {_label(file)}",
                        value / 1e6,
                        "W",
                        limit / 1e6 if limit else None,
                    )


def _label(file: Path) -> str:
    return _word(_beside(file, "label")) or file.name.partition("_")[0]


def _beside(file: Path, what: str) -> Path:
    return file.with_name(f"{file.name.partition('_')[0]}_{what}")


def _batteries(sys: Path) -> Iterator[SensorReading]:
    for supply in _folders(sys / "class/power_supply", "*"):
        if _word(supply / "type") != "Battery":
            continue
        status = _word(supply / "status") or "unknown"
        if (capacity := _number(supply / "capacity")) is not None:
            yield SensorReading("battery", f"{supply.name}, {status.lower()}", capacity, "%")
        if (power := _number(supply / "power_now")) is not None:
            yield SensorReading("power", supply.name, power / 1e6, "W")


def _cpufreq(sys: Path) -> Iterator[SensorReading]:
    policy = sys / "devices/system/cpu/cpu0/cpufreq"
    if governor := _word(policy / "scaling_governor"):
        yield SensorReading("governor", "cpu0", governor, "")
    if (now := _number(policy / "scaling_cur_freq")) is not None:
        top = _number(policy / "cpuinfo_max_freq")
        yield SensorReading("clock", "cpu0", now / 1e6, "GHz", top / 1e6 if top else None)


class EnergyMeter:
    """Average power between two looks at the CPU's energy counters (RAPL); often root's alone."""

    def __init__(self, sys: Path = SYS) -> None:
        self._zones = _folders(sys / "class/powercap", "*-rapl:[0-9]*")
        self._began = time.monotonic()
        self._before = self._counters()

    def _counters(self) -> dict[Path, float]:
        found = {zone: _number(zone / "energy_uj") for zone in self._zones}
        return {zone: value for zone, value in found.items() if value is not None}

    def stop(self) -> tuple[SensorReading, ...]:
        """The power of every zone since the meter was made. A counter that turned over is left out."""
        seconds = time.monotonic() - self._began
        after = self._counters()
        return tuple(
            SensorReading("power", _word(zone / "name") or zone.name, (after[zone] - began) / 1e6 / seconds, "W")
            for zone, began in self._before.items()
            if seconds > 0 and after.get(zone, -1) >= began
        )  # fmt: skip


_NVIDIA_FIELDS: Final = ("name", "temperature.gpu", "power.draw", "power.limit")


def _nvidia() -> Iterator[SensorReading]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    command = [tool, f"--query-gpu={','.join(_NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    if ran.returncode == 0:
        yield from nvidia_readings(ran.stdout)


def nvidia_readings(text: str) -> Iterator[SensorReading]:
    """nvidia-smi's answer, a GPU a line."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_NVIDIA_FIELDS):
            continue
        name, temperature, power, limit = cells
        if (degrees := _float(temperature)) is not None:
            yield SensorReading("temperature", name, degrees, "°C")
        if (watts := _float(power)) is not None:
            yield SensorReading("power", name, watts, "W", _float(limit))


def _folders(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _number(file: Path) -> float | None:
    return _float(_word(file))


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _word(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", errors="replace").strip() or None
    except OSError:
        return None
