"""Photographs a second: `edgeserve run` beside FastAPI with Pillow and onnxruntime, the same model, one run.

    python benchmarks/images.py efficientnet_lite0.edge --photos PHOTOS
    python benchmarks/images.py                        # a small network and made-up photographs

The servers run on the same cores, one at a time: they take turns of a few seconds, and a ratio is that of
neighbouring turns. 8 connections send JPEGs and wait for the best five classes; an answer with another best class than
`edgeserve.load` gives is counted as wrong. FastAPI runs the int8 ONNX file of the bundle with the same preprocessing,
in one process and in one a core, and the fp32 file if `--fp32` names one. It has an environment of its own, made on
first use.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import servers
from benchmarks.load import Load, Question, closed_loop
from benchmarks.servers import Running, Server, post, started
from edgeserve import load as open_bundle
from edgeserve.bundle import Bundle
from edgeserve.devices import machine, usable_cores
from edgeserve.postprocess import ClassesAnswer
from tests.seeing import colours_bundle

PEER = "fastapi-images"
servers.REQUIREMENTS[PEER] = (*servers.REQUIREMENTS["fastapi"], "pillow==13.0.0")
# The best class of other photographs may differ where the last digits of a tensor do.
SURE = 0.5
OURS = "edgeserve"


def photographs(folder: Path | None) -> list[bytes]:
    if folder is not None:
        return [file.read_bytes() for file in sorted(folder.glob("*.jp*g"))]
    random = np.random.default_rng(0)
    found = []
    for _ in range(64):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        small.resize((480, 360), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def sure_ones(bundle: Path, photos: Sequence[bytes], most: int) -> dict[bytes, int]:
    """Photographs that the model is sure of, and their classes."""
    found: dict[bytes, int] = {}
    with open_bundle(bundle) as model:
        for photo in photos:
            answer = model.predict(photo)
            if not isinstance(answer, ClassesAnswer):
                raise SystemExit(f"{bundle} does not classify: convert it with --labels")
            if answer.classes[0].score > SURE:
                found[photo] = answer.classes[0].index
            if len(found) == most:
                break
    if not found:
        raise SystemExit(f"the model is sure of none of {len(photos)} photographs")
    return found


def questions(path: str, photos: dict[bytes, int]) -> list[Question]:
    return [
        Question(
            post(path, photo, "Content-Type: image/jpeg"),
            np.array([index]),
            lambda document: [document["classes"][0]["index"]],
            marker=b'"classes"',
            tolerance=0.1,
        )
        for photo, index in photos.items()
    ]


def edgeserve(bundle: Path, flags: Sequence[str]) -> Server:
    program = [sys.executable, "-m", "edgeserve", "run", str(bundle), *flags]
    return Server(
        OURS,
        lambda port, grpc_port, kind: [*program, "--http-port", str(port)],
        servers.ask_edgeserve,
        lambda kind: "/v2/health/ready",
    )


def fastapi(variables: dict[str, str], model: Path, workers: int, threads: int) -> Server:
    python = str(servers.environment(PEER) / "python")
    program = [python, "-m", "uvicorn", "benchmarks.peers.fastapi_images:app", "--loop", "uvloop"]
    program += ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    program += ["--workers", str(workers)]
    return Server(
        "fastapi",
        lambda port, grpc_port, kind: [*program, "--port", str(port)],
        servers.ask_fastapi,
        lambda kind: "/ready",
        variables | {"MODEL": str(model), "THREADS": str(threads)},
    )


def peers(bundle: Bundle, fp32: Path | None, workers: int, folder: Path) -> dict[str, Server]:
    """FastAPI as it is, where a call takes all cores, and with a process for each core."""
    how = bundle.manifest.task.preprocess
    if how is None or how.resize != "crop":
        raise SystemExit("the bundle does not crop photographs: FastAPI's handler does")
    names = bundle.labels() or [str(i) for i in range(1000)]
    (folder / "labels.txt").write_text("\n".join(names), "utf-8")
    variables = {
        "LABELS": str(folder / "labels.txt"), "SIDE": str(how.height), "RATIO": str(how.crop_ratio),
        "MEAN": str(how.mean[0] / how.scale), "STD": str(how.std[0] / how.scale),
    }  # fmt: skip
    found = {}
    for name, file in (("int8", onnx_file(bundle)), ("fp32", fp32)):
        if file is not None:
            found[f"FastAPI, {name}"] = fastapi(variables, file, 1, 0)
            found[f"FastAPI, {name}, {workers} workers"] = fastapi(variables, file, workers, 1)
    return found


def onnx_file(bundle: Bundle) -> Path:
    """The int8 ONNX variant; of a bundle without one, the first."""
    variants = [v for v in bundle.manifest.variants if v.format == "onnx"]
    if not variants:
        raise SystemExit("the bundle has no ONNX variant for FastAPI")
    best = min(variants, key=lambda variant: variant.precision != "int8")
    print(f"FastAPI runs {best.id}")
    return Path(bundle.path) / best.main


def run(
    bundle: Bundle, photos: dict[bytes, int], options: argparse.Namespace, folder: Path
) -> None:
    cores = set(sorted(os.sched_getaffinity(0))[: options.cores])
    os.sched_setaffinity(0, cores)
    path = Path(bundle.path)
    rates: dict[str, list[float]] = {}
    loads: dict[str, Load] = {}
    cpu_ms: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        all_servers = {OURS: edgeserve(path, options.flags.split())}
        all_servers |= peers(bundle, options.fp32, len(cores), folder)
        for name, server in all_servers.items():
            running[name] = stack.enter_context(
                started(server, "image", path, cores, folder / "log")
            )
        for _ in range(options.rounds):
            for name, server in running.items():
                where = f"/v2/models/{bundle.name}/predict" if name == OURS else "/predict"
                asked = questions(where, photos)
                closed_loop(server.port, asked, options.connections, 0.3)
                before = server.threads_cpu_s()
                load = closed_loop(server.port, asked, options.connections, options.seconds)
                cpu_ms.setdefault(name, []).append(
                    1000 * (server.threads_cpu_s() - before) / max(1, load.requests)
                )
                rates.setdefault(name, []).append(load.rate)
                loads.setdefault(name, Load()).add(load)
    print(
        f"{machine().describe()}; {len(cores)} cores, {options.connections} connections, "
        f"{len(photos)} photographs, {options.rounds} rounds; "
        f"edgeserve serves {bundle.manifest.chain[0].label}"
    )
    print(
        f"{'':26}{'images/s':>9}{'CPU ms':>8}{'p50 ms':>8}{'p99 ms':>8}{'wrong':>7}  edgeserve's rate"
    )
    figures = {}
    for name, load in loads.items():
        ratios = [a / b for a, b in zip(rates[OURS], rates[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios) if len(ratios) > 1 else (ratios[0],) * 3
        figures[name] = {
            "images_per_s": statistics.median(rates[name]), "cpu_ms": statistics.median(cpu_ms[name]),
            "p50_ms": load.percentile_ms(0.5), "p99_ms": load.percentile_ms(0.99),
            "wrong": load.wrong, "ratio": middle,
        }  # fmt: skip
        line = "".join(
            f"{figures[name][key]:{width}.{digits}f}"
            for key, width, digits in (
                ("images_per_s", 9, 0), ("cpu_ms", 8, 2), ("p50_ms", 8, 1), ("p99_ms", 8, 1), ("wrong", 7, 0),
            )
        )  # fmt: skip
        print(f"{name:26}{line}  {middle:.2f}x (half of the rounds: {low:.2f} to {high:.2f})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files")
    parser.add_argument("--fp32", type=Path, help="the ONNX file that the bundle was made of")
    parser.add_argument("--flags", default="", help="of edgeserve run")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--most", type=int, default=100, help="photographs [100]")
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn [3]")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    photos = photographs(options.photos)
    if not photos:
        print(f"skipped: {options.photos} has no JPEG photographs")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle or colours_bundle(Path(folder))
        run(Bundle.open(path), sure_ones(path, photos, options.most), options, Path(folder))


if __name__ == "__main__":
    main()
