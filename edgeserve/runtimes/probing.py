"""Really opening a device, with the smallest model there is (y = x + x), and running it there.

In a process of its own, with a time limit: a driver that crashes or hangs takes that process alone with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.bundle.manifest import Option
from edgeserve.devices import usable_cores
from edgeserve.errors import CheckFailed, DeviceUnavailable, EdgeServeError, one_line
from edgeserve.runtimes import LoadOptions, Runtime, engine_version, runtime
from edgeserve.runtimes.guarded import asked_placement
from edgeserve.runtimes.native import NativeLog
from edgeserve.runtimes.probes import PROBE_FILES
from edgeserve.targets.schema import ChainEntry
from edgeserve.tensors import Interface, TensorSpec

TIMEOUT_S: Final = 20.0
_INTERFACE: Final = Interface(
    (TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (4,)),), max_batch=0
)
_ANSWER: Final = "edgeserve-probe:"


class Probe(msgspec.Struct, frozen=True):
    """What came of opening one device: times where it ran, else the engine's own words.

    `said` is what the engine complained about on stderr, also where it opened.
    """

    runtime: str
    device: str
    options: dict[str, Option]
    ok: bool
    load_ms: float | None = None
    run_ms: float | None = None
    hardware: str | None = None
    placement: str | None = None
    error: str | None = None
    hint: str | None = None
    said: str | None = None
    version: str | None = None

    @property
    def provider(self) -> str:
        return str(self.options.get("provider", ""))


def probe_model(kind: str) -> VariantFiles | None:
    """The probe model in a format; None where there is none."""
    if kind not in PROBE_FILES:
        return None
    return VariantFiles("probe", PROBE_FILES[kind], kind, "fp32", _INTERFACE)


def open_here(name: str, device: str, options: Mapping[str, Option]) -> Probe:
    """Open a device, run the probe model there, close it. Raises EdgeServeError with what failed."""
    adapter = runtime(name)
    models = (probe_model(kind) for kind in adapter.formats)
    model = next((m for m in models if m is not None), None)
    if model is None:
        return _as_the_adapter_says(adapter, device, options)
    x = np.array([0.5, -1, 2, 1024], np.float32)
    began = time.perf_counter()
    session = adapter.load(model, device, LoadOptions(options=dict(options)))
    try:
        loaded = time.perf_counter()
        y = session.run({"x": x})["y"]
        ran = time.perf_counter()
        if not np.array_equal(y, 2 * x):
            raise CheckFailed(
                f"{name} computes wrong numbers on '{device}'",
                cause=f"{x.tolist()} doubled is {y.tolist()}",
            )
        return Probe(
            name,
            device,
            dict(options),
            ok=True,
            load_ms=1000 * (loaded - began),
            run_ms=1000 * (ran - loaded),
            hardware=getattr(session, "hardware", None),
            placement=asked_placement(session).describe(),
            version=engine_version(adapter),
        )
    finally:
        session.close()


def _as_the_adapter_says(adapter: Runtime, device: str, options: Mapping[str, Option]) -> Probe:
    """For third parties' adapters of formats that no probe model is in."""
    info = adapter.probe()
    if not info.opens(device):
        raise DeviceUnavailable(
            f"{adapter.name} does not open '{device}'", cause=info.problem, hint=info.hint
        )
    return Probe(adapter.name, device, dict(options), ok=True, version=info.version)


def open_in_child(
    name: str, device: str, options: Mapping[str, Option], timeout_s: float = TIMEOUT_S
) -> Probe:
    """`open_here` in a process of its own. Never raises: what failed is in the result."""
    question = msgspec.json.encode([name, device, dict(options)]).decode()
    command = [sys.executable, "-m", "edgeserve.runtimes.probing", question]
    failed = Probe(name, device, dict(options), ok=False)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(child)
        _, err = child.communicate()
        return msgspec.structs.replace(
            failed,
            error=f"hangs: no answer within {timeout_s:g} s",
            hint="the driver may be stuck: look at the kernel's log (dmesg), restart the machine",
            said=_complaints(err),
        )
    except BaseException:
        _kill(child)
        child.communicate()
        raise
    for line in out.splitlines():
        if line.startswith(_ANSWER):
            found = msgspec.json.decode(line.removeprefix(_ANSWER), type=Probe)
            return msgspec.structs.replace(found, said=found.said or _complaints(err))
    return msgspec.structs.replace(
        failed,
        error=f"its process dies{_how(child.returncode)} while the device is opened",
        hint="the driver or the engine crashes: update both",
        said=_complaints(err),
    )


def open_in_children(
    wanted: Sequence[tuple[str, str, Mapping[str, Option]]], timeout_s: float = TIMEOUT_S
) -> list[Probe]:
    """`open_in_child` for several (runtime, device, options), a few at a time, in their order."""
    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        return list(pool.map(lambda one: open_in_child(one[0], one[1], one[2], timeout_s), wanted))


def onnxruntime_providers(timeout_s: float = TIMEOUT_S) -> list[str]:
    """The providers built into the installed onnxruntime, asked in a process of its own; none where it
    cannot be imported."""
    code = "import onnxruntime; print(','.join(onnxruntime.get_available_providers()))"
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return [p for p in ran.stdout.strip().split(",") if p] if ran.returncode == 0 else []


def _kill(child: subprocess.Popen[str]) -> None:
    """The child leads a session of its own: drivers may have started helpers."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError, AttributeError):
        child.kill()


def _how(status: int) -> str:
    if status >= 0:
        return f" with exit code {status}"
    try:
        return f" of {signal.Signals(-status).name}"
    except ValueError:
        return f" of signal {-status}"


def _complaints(text: str) -> str | None:
    log = NativeLog()
    log.text = text
    return log.complaints()


def opening_error(entry: ChainEntry) -> EdgeServeError | None:
    """What the engine said when this entry's device was opened in a process of its own; None when it
    opened, or when no probe model is at hand in a format the runtime reads."""
    if all(kind not in PROBE_FILES for kind in runtime(entry.runtime).formats):
        return None
    found = open_in_child(entry.runtime, entry.device, entry.options)
    if found.ok:
        return None
    return DeviceUnavailable(found.error or "it does not open", hint=found.hint)


def main(question: str) -> None:
    """The child: answers on stdout in one line."""
    name, device, options = msgspec.json.decode(question, type=tuple[str, str, dict[str, Option]])
    try:
        found = open_here(name, device, options)
    except EdgeServeError as error:
        found = Probe(name, device, options, ok=False, error=str(error), hint=error.hint)
    except Exception as error:  # an adapter may be anybody's
        text = f"its adapter fails: {one_line(error)}"
        found = Probe(name, device, options, ok=False, error=text)
    sys.stdout.write(f"\n{_ANSWER}{msgspec.json.encode(found).decode()}\n")
    sys.stdout.flush()
    # Past this, drivers' exit handlers have crashed processes that had done their work.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
