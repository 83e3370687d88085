"""Injected faults: a device that misbehaves on order, to see what a server does then.

A fault is written `WHERE:FAULT[=NUMBER][@WHEN[+]]`. WHERE is a device (`gpu`, `npu.1`) or a candidate's label;
WHEN is `load`, `warm-up` or the number of a call, counted from the device's opening, golden and
warm-up runs included. A fault happens once in a server's life, with `+` each time. `WHERE:stand-in`
has the CPU play the device. docs/fallback.md describes each.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.devices.names import is_on
from edgeserve.errors import DeviceUnavailable, InferenceFailed, UsageError, did_you_mean
from edgeserve.runtimes.base import LoadOptions, Placement, Runtime, Session
from edgeserve.tensors import Array, Tensors, TensorSpec

STAND_IN: Final = "stand-in"
# Fault -> its number's meaning and default; None: the fault does not take a number.
FAULTS: Final[dict[str, float | None]] = {
    STAND_IN: None,
    "open-failure": None,
    "slow-open": 5.0,
    "exception": None,
    "segv": None,
    "kill": None,
    "hang": 1e6,
    "nan": None,
    "wrong": None,
    "oom": 0.0,
    "disappear": 5.0,
}
_ALIASES: Final = {"crash": "segv", "sigsegv": "segv", "sigkill": "kill"}
_AT_LOAD_ONLY: Final = ("open-failure", "slow-open")
_LASTING: Final = ("nan", "wrong")  # until the device is opened again
_GRAMMAR: Final = re.compile(
    r"(?P<where>[^:@]+):(?P<kind>[a-z-]+)(?:=(?P<number>[0-9.]+))?"
    r"(?:@(?P<when>load|warm-up|[1-9][0-9]*)(?P<repeats>\+)?)?"
)
_EXAMPLE: Final = "like gpu:crash@100, gpu:open-failure@load+ or gpu:disappear=5@100"


class Fault(msgspec.Struct, frozen=True):
    """One fault. `call` 0 is the load; `number` is seconds, or for `oom` the rows that still fit."""

    text: str
    where: str
    kind: str
    number: float
    call: int
    repeats: bool

    def concerns(self, device: str, label: str) -> bool:
        return self.where == label or is_on(device, self.where)


def parse_fault(text: str) -> Fault:
    """Raises UsageError with the did_you_mean fault's name, or an example."""
    match = _GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a valid fault", hint=_EXAMPLE)
    kind = _ALIASES.get(match["kind"], match["kind"])
    if kind not in FAULTS:
        hint = did_you_mean(kind, (*FAULTS, *_ALIASES), f"known: {', '.join(FAULTS)}")
        raise UsageError(f"'{text}': unknown fault '{kind}'", hint=hint)
    default = FAULTS[kind]
    if match["number"] is not None and default is None:
        raise UsageError(f"'{text}': {kind} does not take a number", hint=_EXAMPLE)
    when = match["when"] or ("load" if kind in (*_AT_LOAD_ONLY, STAND_IN) else None)
    if when is None:
        raise UsageError(f"'{text}' does not say when the fault occurs", hint=_EXAMPLE)
    if kind in _AT_LOAD_ONLY and when != "load":
        raise UsageError(f"'{text}': {kind} is only possible @load", hint=_EXAMPLE)
    if kind in _LASTING and when == "load":
        when = "warm-up"  # there are no numbers before
    try:
        number = float(match["number"] or default or 0.0)
    except ValueError:
        raise UsageError(
            f"'{text}': {match['number']} is not a valid number", hint=_EXAMPLE
        ) from None
    call = {"load": 0, "warm-up": 1}.get(when) if not when.isdigit() else int(when)
    assert call is not None
    return Fault(text, match["where"], kind, number, call, match["repeats"] is not None)


class Faults:
    """The faults of one opening of a device. `state` is a folder that remembers over processes which were
    used up, and since when a device is gone."""

    def __init__(self, faults: Sequence[Fault], state: Path) -> None:
        self._faults = faults
        self._state = state

    @classmethod
    def parse(cls, texts: Sequence[str], state: str) -> Faults:
        return cls([parse_fault(t) for t in texts], Path(state))

    def load(
        self, adapter: Runtime, model: VariantFiles, device: str, options: LoadOptions, label: str
    ) -> Session:
        """Open the device, or do to that what was ordered."""
        for fault in self._faults:
            if fault.kind == "disappear" and time.time() < self._used_at(fault) + fault.number:
                raise DeviceUnavailable(f"no device '{device}'", cause=f"injected: {fault.text}")
            if fault.call == 0 and fault.kind != STAND_IN and self.take(fault):
                _load_fault(fault, device)
        if any(f.kind == STAND_IN for f in self._faults):
            plain = msgspec.structs.replace(options, options={})
            return FaultySession(adapter.load(model, "cpu", plain), device, self)
        return FaultySession(adapter.load(model, device, options), device, self)

    def due(self, call: int) -> list[Fault]:
        """What happens at this call."""
        return [
            fault
            for fault in self._faults
            if fault.call
            and (call == fault.call or (call > fault.call and fault.repeats))
            and self.take(fault)
        ]

    def take(self, fault: Fault) -> bool:
        """Note that a fault happens; False when it has happened and does so only once."""
        file = self._file(fault)
        if file.exists() and not fault.repeats:
            return False
        with contextlib.suppress(OSError):
            file.touch()
            os.utime(file)
        return True

    def _used_at(self, fault: Fault) -> float:
        try:
            return self._file(fault).stat().st_mtime
        except OSError:
            return float("-inf")

    def _file(self, fault: Fault) -> Path:
        return self._state / re.sub(r"[^A-Za-z0-9.+=-]", "_", fault.text)


class FaultySession:
    """A real session whose calls fail as the faults say."""

    def __init__(self, session: Session, device: str, faults: Faults) -> None:
        self._session = session
        self._faults = faults
        self._calls = 0
        self._spoiled: str | None = None
        self._lock = threading.Lock()
        self.device = device
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.concurrency = session.concurrency

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            self._calls += 1
            due = self._faults.due(self._calls)
        for fault in due:
            if fault.kind in _LASTING:
                self._spoiled = fault.kind
            else:
                _call_fault(fault, inputs)
        outputs = self._session.run(inputs)
        if self._spoiled is None:
            return outputs
        return {n: _spoil(a, self._spoiled) for n, a in outputs.items()}

    def placement(self) -> Placement:
        return self._session.placement()

    def close(self) -> None:
        self._session.close()


def _load_fault(fault: Fault, device: str) -> None:
    if fault.kind == "open-failure":
        raise DeviceUnavailable(f"cannot open '{device}'", cause=f"injected: {fault.text}")
    if fault.kind == "slow-open":
        time.sleep(fault.number)
    elif fault.kind == "oom":
        raise DeviceUnavailable(f"out of memory on '{device}'", cause=f"injected: {fault.text}")
    elif fault.kind == "exception":
        raise RuntimeError(f"injected: {fault.text}")
    else:
        _fatal(fault)


def _call_fault(fault: Fault, inputs: Tensors) -> None:
    if fault.kind == "exception":
        raise InferenceFailed("the device failed", cause=f"injected: {fault.text}")
    if fault.kind == "oom":
        rows = len(next(iter(inputs.values())))
        if rows > fault.number:
            text = f"out of memory, {rows} rows; injected: {fault.text}"
            raise InferenceFailed("the device failed", cause=text)
    else:
        _fatal(fault)


def _fatal(fault: Fault) -> None:
    """End this process, or sleep in it."""
    sys.stderr.write(f"injected: {fault.text}\n")
    sys.stderr.flush()
    if fault.kind == "segv":
        ctypes.string_at(0)
    elif fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "hang":
        time.sleep(fault.number)
    elif fault.kind == "disappear":
        os._exit(1)


def _spoil(array: Array, how: str) -> Array:
    if array.dtype.kind != "f":
        return array if how == "nan" or array.dtype.kind not in "iu" else array + 1
    spoiled: Array = np.full_like(array, np.nan) if how == "nan" else array * 1.5 + 1
    return spoiled
