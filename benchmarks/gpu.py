"""Every GPU and NPU that opens with this interpreter's engines: latency, throughput, placement, fallback.

    benchmarks/gpu.sh [--resnet50] [--json FILE]        # runs this in each environment there is
    python benchmarks/gpu.py [--onnx FILE] [--json FILE]

A device and the same engine's CPU are timed in turns on the same inputs, and their outputs compared. For
the fallback a chain of the device and the CPU is asked without a pause while the device's process is
killed, three times: every answer is compared, and counted are answers lost, the longest one, and the time
until the device serves again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve.bench.interleave import interleave
from edgeserve.bench.statistics import summarize
from edgeserve.bundle import Bundle, VariantFiles
from edgeserve.bundle.manifest import Option
from edgeserve.chain import BOARD, Chain, ChainOptions
from edgeserve.devices import machine
from edgeserve.diagnosis.diagnose import probe_everything
from edgeserve.diagnosis.packages import installed_packages
from edgeserve.errors import EdgeServeError
from edgeserve.isolation import IsolatedSession
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.probing import Probe
from edgeserve.tensors import Interface, Tensors, TensorSpec
from tests.gpu.digits import DIGITS, ONNX, TFLITE, digits_bundle, images, logits

SECONDS = 6.0
BATCH = 8
KILLS = 3


class Network(msgspec.Struct, frozen=True):
    """A model in the formats there are of it, and its inputs: one, and BATCH at once."""

    name: str
    interface: Interface
    files: dict[str, Path]
    one: Tensors
    many: Tensors


class Result(msgspec.Struct, frozen=True):
    """One network on one device, beside the same engine's CPU. Times in ms, rates in samples a second."""

    network: str
    runtime: str
    device: str
    provider: str
    hardware: str | None
    placement: str
    load_ms: float
    first_ms: float
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    cpu_p50_ms: float
    batch_rate: float
    cpu_batch_rate: float
    relative_error: float


class Fallback(msgspec.Struct, frozen=True):
    """What killing the device's process cost. Times in ms; `back_s` until it served again."""

    runtime: str
    provider: str
    requests: int
    lost: int
    wrong: int
    p50_ms: float
    longest_ms: list[float]
    back_s: list[float]


def digits() -> Network:
    files = {"onnx": ONNX, "tflite": TFLITE}
    return Network("digits", DIGITS, files, {"image": images(1)}, {"image": images(BATCH)})


def image_network(name: str, file: Path) -> Network:
    """An ONNX model of 224x224 photographs, random ones here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,), made = session.get_inputs(), session.get_outputs()
    shape = [d if isinstance(d, int) else 1 for d in given.shape[1:]]
    interface = Interface(
        (TensorSpec(given.name, "FP32", ("batch", *shape)),),
        tuple(
            TensorSpec(o.name, "FP32", ("batch", *[d for d in o.shape[1:] if isinstance(d, int)]))
            for o in made
        ),
        max_batch=BATCH,
    )
    random = np.random.default_rng(0)
    pixels = random.random((BATCH, *shape), np.float32)
    return Network(name, interface, {"onnx": file}, {given.name: pixels[:1]}, {given.name: pixels})


def with_openvino(network: Network, folder: Path) -> Network:
    """The same network as OpenVINO IR, where openvino is installed."""
    try:
        import openvino
    except ImportError:
        return network
    file = folder / f"{network.name}.xml"
    openvino.save_model(openvino.convert_model(network.files["onnx"]), file, compress_to_fp16=False)
    return msgspec.structs.replace(network, files=network.files | {"openvino-ir": file})


def opened(network: Network, probe: Probe, device: str) -> Session | None:
    """None where there is no file of this network for the runtime."""
    adapter = runtime(probe.runtime)
    kind = next((f for f in adapter.formats if f in network.files), None)
    if kind is None:
        return None
    # The TFLite file takes one sample a call.
    batch = 1 if kind == "tflite" else 0
    model = VariantFiles(network.name, network.files[kind], kind, "fp32", network.interface, batch)
    options: dict[str, Option] = probe.options if device != "cpu" else {}
    return adapter.load(model, device, LoadOptions(options=options, spin=False))


def measure(network: Network, probe: Probe) -> Result | None:
    began = time.perf_counter()
    session = opened(network, probe, probe.device)
    cpu = opened(network, probe, "cpu")
    if session is None or cpu is None:
        return None
    loaded = time.perf_counter()
    got = session.run(network.one)
    first = time.perf_counter()
    wanted = cpu.run(network.one)
    error = max(
        float(np.linalg.norm(got[n] - wanted[n]) / (np.linalg.norm(wanted[n]) or 1)) for n in got
    )
    placement = session.placement().describe()
    # The driver compiles kernels for each shape once: that is load time, too.
    session.run(network.many)
    timings = interleave(
        {
            "device": lambda: session.run(network.one),
            "cpu": lambda: cpu.run(network.one),
            "device-many": lambda: session.run(network.many),
            "cpu-many": lambda: cpu.run(network.many),
        },
        max_seconds=4 * SECONDS,
    )
    summary = {name: summarize(t.ms) for name, t in timings.items()}
    session.close()
    cpu.close()
    one = summary["device"]
    return Result(
        network.name,
        probe.runtime,
        probe.device,
        probe.provider.removesuffix("ExecutionProvider"),
        probe.hardware,
        placement,
        1000 * (loaded - began),
        1000 * (first - loaded),
        one.p50,
        one.p90,
        one.p99,
        summary["cpu"].p50,
        1000 * BATCH / summary["device-many"].p50,
        1000 * BATCH / summary["cpu-many"].p50,
        error,
    )


def fall_back(probe: Probe, folder: Path) -> Fallback | None:
    """Kill the device's process while its chain is asked."""
    if probe.runtime not in ("onnxruntime", "litert") or probe.device != "gpu":
        return None  # the digits bundle is theirs
    folder.mkdir()
    bundle = Bundle.open(digits_bundle(folder, probe.runtime, probe.options))
    inputs = images(1, seed=5)
    expected = logits(inputs)
    times: list[float] = []
    longest, back = [], []
    lost = wrong = 0
    BOARD.forget()
    with Chain(bundle, ChainOptions(reopen_s=0.2, watchdog_s=30.0, threads=1)) as chain:

        def ask() -> str:
            nonlocal lost, wrong
            began = time.perf_counter()
            try:
                outputs, candidate = chain.run({"image": inputs})
            except EdgeServeError:
                lost += 1
                return ""
            times.append(1000 * (time.perf_counter() - began))
            time.sleep(0.01)  # leaves a software driver a core to come back on
            wrong += not np.allclose(outputs["logits"], expected, rtol=1e-2, atol=1e-2)
            return candidate.device

        for _ in range(20):
            ask()
        usual = float(np.median(times))
        for _ in range(KILLS):
            session = chain.session
            assert isinstance(session, IsolatedSession)
            os.kill(session.pid, signal.SIGKILL)
            killed, start = time.perf_counter(), len(times)
            seen = {ask()}
            while not ("cpu" in seen and ask() == "gpu") and time.perf_counter() < killed + 120:
                seen.add(ask())
            back.append(time.perf_counter() - killed)
            longest.append(max(times[start:]))
    return Fallback(
        probe.runtime,
        probe.provider.removesuffix("ExecutionProvider"),
        len(times) + lost,
        lost,
        wrong,
        usual,
        longest,
        back,
    )


def table(title: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(title) + " |")
    print("|" + "---|" * len(title))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def report(probes: list[Probe], results: list[Result], falls: list[Fallback]) -> None:
    closed = [p for p in probes if p.device != "cpu" and not p.ok]
    print(f"\n{machine().describe()}; Python {platform.python_version()}\n")
    for probe in closed:
        name = probe.provider.removesuffix("ExecutionProvider")
        print(f"- not opened: {probe.runtime}/{probe.device} {name}: {probe.error}")
    if closed:
        print()
    table(
        ["network", "on", "hardware", "placement", "load, ms", "first, ms", "p50, ms", "p99, ms",
         "CPU p50, ms", f"batch {BATCH}, 1/s", "CPU, 1/s", "error"],
        [
            [r.network, f"{r.runtime}/{r.device} {r.provider}".strip(), r.hardware or "", r.placement,
             f"{r.load_ms:.0f}", f"{r.first_ms:.0f}", ms(r.p50_ms), ms(r.p99_ms), ms(r.cpu_p50_ms),
             f"{r.batch_rate:.0f}", f"{r.cpu_batch_rate:.0f}", f"{r.relative_error:.1e}"]
            for r in results
        ],
    )  # fmt: skip
    table(
        ["fallback of", "requests", "lost", "wrong", "usual p50, ms", "longest at each kill, ms",
         "back after, s"],
        [
            [f"{f.runtime} {f.provider}".strip(), str(f.requests), str(f.lost), str(f.wrong), ms(f.p50_ms),
             ", ".join(ms(v) for v in f.longest_ms), ", ".join(f"{v:.1f}" for v in f.back_s)]
            for f in falls
        ],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, help="another model of images, FP32[batch,3,h,w]")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    probes = probe_everything(installed_packages(), 60.0)
    there = [p for p in probes if p.ok and p.device != "cpu"]
    results: list[Result] = []
    falls: list[Fallback] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks = [digits()]
        if arguments.onnx is not None:
            networks.append(image_network(arguments.onnx.stem, arguments.onnx))
        networks = [with_openvino(n, folder) for n in networks]
        for probe in there:
            for network in networks:
                try:
                    found = measure(network, probe)
                except EdgeServeError as error:
                    print(f"{network.name} on {probe.runtime}: {error}", file=sys.stderr)
                    continue
                if found is not None:
                    results.append(found)
            fell = fall_back(probe, folder / f"fallback-{len(falls)}")
            if fell is not None:
                falls.append(fell)
    report(probes, results, falls)
    if arguments.json is not None:
        found_all: dict[str, Any] = {"probes": probes, "results": results, "fallback": falls}
        arguments.json.write_text(json.dumps(msgspec.to_builtins(found_all), indent=2) + "\n")
    if not there:
        print("no GPU and no NPU opens here; edgeserve doctor says why", file=sys.stderr)
    return 0 if there and all(f.lost == f.wrong == 0 for f in falls) else 1


if __name__ == "__main__":
    # Engines print while they go; what they say is in the table.
    status = main()
    sys.stdout.flush()
    os._exit(status)
