"""Temperatures, power and clocks from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.devices.readings import EnergyMeter, SensorReading, nvidia_readings, readings


def tree(sys: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (sys / name).parent.mkdir(parents=True, exist_ok=True)
        (sys / name).write_text(text + "\n")
    return sys


ZONE = "class/thermal/thermal_zone0"
HWMON = "class/hwmon/hwmon3"
CASES = {
    "a thermal zone throttles at its passive trip": (
        {
            f"{ZONE}/type": "cpu-thermal",
            f"{ZONE}/temp": "61250",
            f"{ZONE}/trip_point_0_type": "passive",
            f"{ZONE}/trip_point_0_temp": "85000",
            f"{ZONE}/trip_point_1_type": "critical",
            f"{ZONE}/trip_point_1_temp": "100000",
        },
        [SensorReading("temperature", "cpu-thermal", 61.25, "°C", 85.0)],
    ),
    "a zone without a sensor": ({f"{ZONE}/type": "x", f"{ZONE}/temp": "none"}, []),
    "a trip that is switched off is no limit": (
        {
            f"{ZONE}/type": "soc",
            f"{ZONE}/temp": "40000",
            f"{ZONE}/trip_point_0_type": "critical",
            f"{ZONE}/trip_point_0_temp": "-274000",
        },
        [SensorReading("temperature", "soc", 40.0, "°C")],
    ),
    "a chip's sensors": (
        {
            f"{HWMON}/name": "amdgpu",
            f"{HWMON}/temp1_input": "45000",
            f"{HWMON}/temp1_label": "edge",
            f"{HWMON}/temp1_crit": "97000",
            f"{HWMON}/power1_average": "12000000",
            f"{HWMON}/power1_cap": "203000000",
        },
        [
            SensorReading("temperature", "amdgpu edge", 45.0, "°C", 97.0),
            SensorReading("power", "amdgpu power1", 12.0, "W", 203.0),
        ],
    ),
    "a battery": (
        {
            "class/power_supply/BAT0/type": "Battery",
            "class/power_supply/BAT0/status": "Discharging",
            "class/power_supply/BAT0/capacity": "57",
            "class/power_supply/BAT0/power_now": "8500000",
            "class/power_supply/AC/type": "Mains",
        },
        [
            SensorReading("battery", "BAT0, discharging", 57.0, "%"),
            SensorReading("power", "BAT0", 8.5, "W"),
        ],
    ),
    "a clock below its top": (
        {
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
            "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000",
        },
        [
            SensorReading("governor", "cpu0", "powersave", ""),
            SensorReading("clock", "cpu0", 1.8, "GHz", 2.4),
        ],
    ),
    "nothing": ({}, []),
}


@pytest.mark.parametrize("name", CASES)
def test_readings(tmp_path: Path, name: str) -> None:
    files, expected = CASES[name]
    assert list(readings(tree(tmp_path, files))) == expected


def test_power_is_energy_over_time(tmp_path: Path) -> None:
    zone = "class/powercap/intel-rapl:0"
    tree(tmp_path, {f"{zone}/name": "package-0", f"{zone}/energy_uj": "1000000"})
    meter = EnergyMeter(tmp_path)
    tree(tmp_path, {f"{zone}/energy_uj": "3000000"})
    (power,) = meter.stop()
    assert (power.kind, power.name, power.unit) == ("power", "package-0", "W")
    assert isinstance(power.value, float)
    assert power.value > 0


def test_an_energy_counter_that_turned_over_is_left_out(tmp_path: Path) -> None:
    zone = "class/powercap/intel-rapl:0"
    tree(tmp_path, {f"{zone}/name": "package-0", f"{zone}/energy_uj": "3000000"})
    meter = EnergyMeter(tmp_path)
    tree(tmp_path, {f"{zone}/energy_uj": "5"})
    assert meter.stop() == ()


def test_nvidia_s_answer() -> None:
    found = list(nvidia_readings("NVIDIA H100, 34, 71.90, 700.00\nTesla T4, 40, [N/A], [N/A]\n\n"))
    assert found == [
        SensorReading("temperature", "NVIDIA H100", 34.0, "°C"),
        SensorReading("power", "NVIDIA H100", 71.9, "W", 700.0),
        SensorReading("temperature", "Tesla T4", 40.0, "°C"),
    ]


def test_this_machine_can_be_read() -> None:
    for reading in readings():
        assert reading.text()
