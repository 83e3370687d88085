"""Photographs a second: `edgeserve run` beside FastAPI with Pillow and onnxruntime, the same model, one run.

    python benchmarks/images.py efficientnet_lite0.edge --photos ../shared/data/imagenet-500
    python benchmarks/images.py                        # a small network and made-up photographs

Each server is started, asked from 8 connections, and ended; then the other one; several rounds. Both answer the best five
classes of a JPEG. FastAPI runs the fastest onnx file of the bundle, with the same preprocessing; it runs in an environment of
its own, made on first use. A ratio is that of neighbouring rounds; the median and the quartiles are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve.bundle import Bundle
from edgeserve.conversion.tools.environment import cache_root

CONNECTIONS = 8
REQUIREMENTS = (
    "fastapi==0.165.0", "uvicorn==0.54.0", "uvloop", "httptools", "onnxruntime==1.32.0", "pillow", "numpy",
)  # fmt: skip


def environment() -> Path:
    """The Python of the peer's environment."""
    folder = cache_root() / "benchmarks" / "fastapi-images"
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        subprocess.run(pip, check=True)
        (folder / ".installed").touch()
    return python


def photographs(folder: Path | None, count: int = 64) -> list[bytes]:
    if folder is not None:
        files = sorted(folder.glob("*.jp*g"))[:count]
        if files:
            return [file.read_bytes() for file in files]
        print(f"{folder} has no photographs: made-up ones are used", file=sys.stderr)
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = random.integers(0, 256, (24, 32, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((480, 360), Image.Resampling.BICUBIC).save(
            file, "JPEG", quality=90
        )
        found.append(file.getvalue())
    return found


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], port: int, ready: str, env: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", ready)
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def images_a_second(
    port: int, path: str, photos: list[bytes], seconds: float
) -> tuple[float, list[str]]:
    """Answered photographs, and the best label of each of the first ones."""
    best: dict[int, str] = {}
    counts = [0] * CONNECTIONS
    stop = threading.Event()

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        at = number
        while not stop.is_set():
            which = at % len(photos)
            connection.request("POST", path, photos[which], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {body[:200]!r}")
            if which not in best:
                best[which] = json.loads(body)["classes"][0]["label"]
            counts[number] += 1
            at += CONNECTIONS

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)  # until both are warm
    before, began = sum(counts), time.perf_counter()
    time.sleep(seconds)
    done, took = sum(counts) - before, time.perf_counter() - began
    stop.set()
    for thread in threads:
        thread.join(30)
    return done / took, [best.get(i, "") for i in range(min(len(photos), CONNECTIONS))]


def fastest_onnx(bundle: Bundle) -> Path:
    """The ONNX file that onnxruntime runs fastest, by what `convert` measured."""
    found = [
        (min((m.latency_ms for m in v.measured if m.runtime == "onnxruntime"), default=1e9), v)
        for v in bundle.manifest.variants
        if v.format == "onnx"
    ]
    if not found:
        raise SystemExit("the bundle has no ONNX variant for the peer")
    _, variant = min(found, key=lambda pair: pair[0])
    print(f"FastAPI runs {variant.id}")
    return Path(bundle.path) / variant.main


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1", help="engine threads of FastAPI's calls [1]")
    options = parser.parse_args()
    photos = photographs(options.photos)
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle or small_bundle(Path(folder))
        run(path, photos, options, Path(folder))


def small_bundle(folder: Path) -> Path:
    from tests.seeing import colours_bundle

    return colours_bundle(folder)


def run(path: Path, photos: list[bytes], options: argparse.Namespace, folder: Path) -> None:
    bundle = Bundle.open(path)
    how = bundle.manifest.task.preprocess
    if how is None:
        raise SystemExit("the bundle stores no preprocess")
    classes = [d for d in bundle.manifest.interface.outputs[0].shape if isinstance(d, int)][-1]
    labels = bundle.labels() or [str(i) for i in range(classes)]
    (folder / "labels.txt").write_text("\n".join(labels))
    peer = {
        "MODEL": str(fastest_onnx(bundle)), "LABELS": str(folder / "labels.txt"), "SIDE": str(how.height),
        "RATIO": str(how.crop_ratio), "MEAN": str(how.mean[0] / how.scale), "STD": str(how.std[0] / how.scale),
        "THREADS": options.threads,
    }  # fmt: skip
    python = environment()
    rates: dict[str, list[float]] = {"edgeserve": [], "fastapi": []}
    seen: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        port = free_port()
        ours = [
            sys.executable,
            "-m",
            "edgeserve",
            "run",
            str(path),
            "--name",
            "model",
            "--http-port",
            str(port),
        ]
        with started(ours, port, "/v2/health/ready", {}):
            rate, seen["edgeserve"] = images_a_second(
                port, "/v2/models/model/predict", photos, options.seconds
            )
            rates["edgeserve"].append(rate)
        port = free_port()
        theirs = [
            str(python), "-m", "uvicorn", "benchmarks.peers.fastapi_images:app", "--port", str(port),
            "--log-level", "error",
        ]  # fmt: skip
        with started(theirs, port, "/ready", peer):
            rate, seen["fastapi"] = images_a_second(port, "/predict", photos, options.seconds)
            rates["fastapi"].append(rate)
        print(
            f"  edgeserve {rates['edgeserve'][-1]:7.1f}/s   fastapi {rates['fastapi'][-1]:7.1f}/s",
            flush=True,
        )
    ratios = [a / b for a, b in zip(rates["edgeserve"], rates["fastapi"], strict=True)]
    agree = sum(a == b for a, b in zip(seen["edgeserve"], seen["fastapi"], strict=True))
    print(
        f"images a second from {CONNECTIONS} connections, {len(photos)} photographs, {options.rounds} rounds"
    )
    for name, found in rates.items():
        print(f"  {name:10} {statistics.median(found):7.1f}")
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"  ratio      {statistics.median(ratios):7.2f}   quartiles {low:.2f} to {high:.2f}")
    print(f"  the same best class for {agree} of {len(seen['edgeserve'])} photographs")


if __name__ == "__main__":
    main()
