"""Runtimes: one adapter per inference engine, found by entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

from edgeserve.bundle import VariantFiles
from edgeserve.errors import UsageError, did_you_mean
from edgeserve.runtimes.base import (
    DeviceInfo,
    LoadOptions,
    Placement,
    Runtime,
    RuntimeInfo,
    Session,
)

__all__ = [
    "DeviceInfo",
    "LoadOptions",
    "Placement",
    "Runtime",
    "RuntimeInfo",
    "Session",
    "engine_version",
    "forget_compiled",
    "runtime",
    "runtime_names",
]


@cache
def runtime_names() -> tuple[str, ...]:
    """The names of all installed runtime adapters (their engines may be missing)."""
    return tuple(sorted({e.name for e in entry_points(group="edgeserve.runtimes")}))


def engine_version(adapter: Runtime) -> str | None:
    """The version of an adapter's engine; `probe`, which opens devices, only where it tells no other way."""
    tell: Callable[[], str | None] | None = getattr(adapter, "version", None)
    return tell() if tell is not None else adapter.probe().version


def forget_compiled(
    adapter: Runtime, model: VariantFiles, device: str, options: LoadOptions
) -> None:
    """Drop what an engine keeps on disk of a model it has compiled for a device, where it keeps any."""
    forget = getattr(adapter, "forget", None)
    if forget is not None:
        forget(model, device, options)


@cache
def runtime(name: str) -> Runtime:
    """The adapter called `name`. Raises UsageError for an unknown one."""
    for entry in entry_points(group="edgeserve.runtimes", name=name):
        adapter: Runtime = entry.load()()
        return adapter
    raise UsageError(
        f"unknown runtime '{name}'",
        hint=did_you_mean(name, runtime_names(), f"known: {', '.join(runtime_names())}"),
    )
