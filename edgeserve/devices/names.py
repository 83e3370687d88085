"""Devices by name: `cpu`, `gpu`, `npu`, with an index where there are several (`gpu.1`)."""

from __future__ import annotations


def device_kind(device: str) -> str:
    """The name without its index: `gpu` of `gpu.1`."""
    return device.partition(".")[0]


def is_on(device: str, wanted: str | None) -> bool:
    """Whether a device is the one wanted, or of the kind that is; any device is where None is wanted."""
    return wanted in (None, device, device_kind(device))
