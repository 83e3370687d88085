"""The memory that `edgeserve convert` takes, in times of the model's size.

    python benchmarks/memory.py --megabytes 400 -- --precision fp32

Makes a chain of MatMul layers, converts it with the arguments after `--`, and looks every 20 ms at what the
process and its children hold (Linux; pages that several of them share count for each).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 2048
_MOST_MEGABYTES = 4000
_TIMEOUT_S = 3600
_LOOK_S = 0.02


def write_model(file: Path, megabytes: int, *, beside: bool = False) -> int:
    """A float32 model of about so many MB, its weights in the file or `beside` it. Its size in bytes."""
    layers = max(1, round(megabytes * 1e6 / (4 * _WIDTH * _WIDTH)))
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        array = random.standard_normal((_WIDTH, _WIDTH), dtype=np.float32) * (2 / _WIDTH) ** 0.5
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
        value = f"r{layer}"
    nodes.pop()
    nodes[-1].output[0] = "y"
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", _WIDTH]) for n in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if beside:
        onnx.save_model(model, str(file), save_as_external_data=True, location=f"{file.name}.data")
    else:
        onnx.save_model(model, str(file))
    return sum(part.stat().st_size for part in file.parent.iterdir())


def peak_of(command: list[str]) -> tuple[int, float]:
    """The most bytes that a command and its children hold at once, and the seconds it takes. Raises
    CalledProcessError, TimeoutExpired."""
    began, most = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            most = max(most, sum(_resident(pid) for pid in _family(process.pid)))
            if time.monotonic() - began > _TIMEOUT_S:
                raise subprocess.TimeoutExpired(command, _TIMEOUT_S)
            time.sleep(_LOOK_S)
    finally:
        if process.poll() is None:
            process.kill()
        _, said = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    return most, time.monotonic() - began


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main() -> None:
    """Print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of the model [400]")
    parser.add_argument("--beside", action="store_true", help="keep its weights beside it")
    parser.add_argument("arguments", nargs="*", help="of edgeserve convert, after --")
    asked = parser.parse_args()
    if not 1 <= asked.megabytes <= _MOST_MEGABYTES:
        parser.error(f"--megabytes must be between 1 and {_MOST_MEGABYTES}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        size = write_model(source / "model.onnx", asked.megabytes, beside=asked.beside)
        command = [sys.executable, "-m", "edgeserve", "convert", str(source / "model.onnx")]
        peak, seconds = peak_of([*command, "-o", f"{folder}/model.edge", *asked.arguments])
    print(
        f"{' '.join(asked.arguments)}: model {size / 1e6:.0f} MB, "
        f"peak {peak / 1e6:.0f} MB, {peak / size:.1f} times its size, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
