"""Which targets this machine satisfies: targets and the machine compared with what runtimes open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.devices import Machine, machine
from edgeserve.devices.names import device_kind
from edgeserve.errors import DeviceUnavailable
from edgeserve.runtimes import RuntimeInfo, runtime, runtime_names
from edgeserve.runtimes.onnx_providers import provider_name
from edgeserve.runtimes.probing import opening_error
from edgeserve.targets.schema import ChainEntry, Target, load_target

AUTO: Final = "auto"
# What `auto` tries, most capable first; of CPUs the one that asks for most. WebGPU is not among them:
# software drivers answer to it too.
AUTO_ORDER: Final = (
    "nvidia-gpu",
    "intel-npu",
    "intel-gpu",
    "cpu-x86-amx",
    "cpu-x86-vnni",
    "cpu-x86-avx2",
    "cpu-x86",
    "graviton",
    "raspberry-pi-5",
    "raspberry-pi-4",
    "cpu-arm64",
)


class EntryCheck(msgspec.Struct, frozen=True):
    """Whether one chain entry's device opens here; `reason` says what opened, or why not."""

    entry: ChainEntry
    ok: bool
    reason: str
    hint: str | None = None


class TargetCheck(msgspec.Struct, frozen=True):
    """Whether this machine satisfies a target, and each of its chain entries."""

    target: Target
    satisfied: bool
    reason: str
    entries: tuple[EntryCheck, ...]


def probe_all() -> dict[str, RuntimeInfo]:
    """What every installed runtime adapter can open here. Imports their engines."""
    return {name: _probe(name) for name in runtime_names()}


def _probe(name: str) -> RuntimeInfo:
    try:
        return runtime(name).probe()
    except Exception as error:  # an adapter may be anybody's: one that breaks must not stop others
        return RuntimeInfo(name, None, problem=f"its adapter fails: {error}")


def check_target(target: Target, here: Machine, probes: Mapping[str, RuntimeInfo]) -> TargetCheck:
    """Compare a target with this machine.

    It is satisfied where the architecture and the CPU match and the kind of device that it is about,
    that of its first chain entry, opens with one of its runtimes: the CPU fallback of a GPU target
    does not make a GPU.
    """
    entries = tuple(_check_entry(entry, probes) for entry in target.chain)
    kind = device_kind(target.chain[0].device)
    needed = [e for e in entries if e.ok and not e.entry.optional]
    opened = [e for e in needed if device_kind(e.entry.device) == kind]
    if target.convert_only:
        satisfied, reason = False, "its devices run bundles without edgeserve"
    elif not target.runs_on(here.arch):
        satisfied, reason = False, f"this machine is {here.arch}, not {' or '.join(target.arch)}"
    elif problem := cpu_problem(target, here):
        satisfied, reason = False, problem
    elif not opened:
        satisfied, reason = False, entries[0].reason
    else:
        satisfied, reason = True, opened[0].reason
    return TargetCheck(target, satisfied, reason, entries)


def cpu_problem(target: Target, here: Machine) -> str | None:
    """Why this machine's CPU is not the target's; None where it is, or where any would be."""
    if target.cpus and here.cpu not in target.cpus:
        wanted = " or ".join(target.cpus)
        return f"the CPU is {here.cpu or 'unknown'}, not {wanted}"
    if target.cpu_features and here.cpu_features is None:
        return "the system does not report the CPU's features"
    has = set(here.cpu_features or ())
    missing = [f for f in target.cpu_features if has.isdisjoint(f.split("|"))]
    if missing:
        return f"the CPU lacks {', '.join(f.replace('|', ' or ') for f in missing)}"
    return None


def _check_entry(entry: ChainEntry, probes: Mapping[str, RuntimeInfo]) -> EntryCheck:
    info = probes.get(entry.runtime)
    if info is None:
        return EntryCheck(entry, False, f"no runtime adapter is called {entry.runtime}")
    if not info.installed:
        reason = info.problem or f"{entry.runtime} is not installed"
        return EntryCheck(entry, False, reason, info.hint)
    # Only a runtime with several ways to one device takes a provider, and names it in `detail`.
    named = entry.options.get("provider")
    provider = provider_name(str(named)) if named else None
    for device in info.devices:
        if device.device == entry.device and provider in (None, device.detail):
            return EntryCheck(entry, True, f"{info.name} {info.version} opens {device.detail}")
    offered = ", ".join(f"{d.device} ({d.detail})" for d in info.devices) or "no device"
    wanted = f"{entry.device} ({provider})" if provider else entry.device
    reason = f"{info.name} {info.version} opens {offered} here, not {wanted}"
    return EntryCheck(entry, False, f"{reason}: {info.problem}" if info.problem else reason)


def explain_target(target: Target, here: Machine, probes: Mapping[str, RuntimeInfo]) -> TargetCheck:
    """`check_target`, with the engine's own message for devices that did not open."""
    check = check_target(target, here, probes)
    entries = tuple(e if e.ok else _with_engine_message(e, probes) for e in check.entries)
    return msgspec.structs.replace(check, entries=entries)


def _with_engine_message(check: EntryCheck, probes: Mapping[str, RuntimeInfo]) -> EntryCheck:
    info = probes.get(check.entry.runtime)
    if info is None or not info.installed:
        return check
    error = opening_error(check.entry)
    return EntryCheck(check.entry, False, str(error), error.hint) if error else check


def detect_target(
    here: Machine | None = None, probes: Mapping[str, RuntimeInfo] | None = None
) -> Target:
    """The most capable shipped target that this machine satisfies; what `--target auto` means.

    Raises DeviceUnavailable when there is none.
    """
    here = here or machine()
    candidates = [t for t in map(load_target, AUTO_ORDER) if t.runs_on(here.arch)]
    if candidates and probes is None:
        probes = probe_all()
    checks = [check_target(target, here, probes or {}) for target in candidates]
    for check in checks:
        if check.satisfied:
            return check.target
    raise DeviceUnavailable(
        f"no shipped target fits this machine ({here.describe()})",
        cause="; ".join(f"{c.target.name}: {c.reason}" for c in checks) or None,
        hint="`edgeserve targets` explains each; `--target FILE.toml` takes one of your own",
    )


def resolve_target(name_or_path: str | Path) -> Target:
    """`auto`, a target's name, or a path to a TOML. Raises TargetError, DeviceUnavailable."""
    if name_or_path == AUTO:
        return detect_target()
    return load_target(name_or_path)
