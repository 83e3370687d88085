"""A folder that holds what the documentation's commands name, and a way to run them as a shell would."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.bundles import linear_model
from tests.commands import edgeserve
from tests.networks import small_cnn

DIGITS = Path(__file__).resolve().parents[1] / "edgeserve" / "demo" / "files"
_CLASSES = 10
_PHOTOS = 48

BOARD = """
# A board of one's own. Source: its data sheet.
name = "my-board"
title = "My board"
arch = ["x86_64", "AMD64", "aarch64", "arm64"]

[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
"""
LIMITS = '[gate]\nmax_size = "5 MB"\nmin_cosine = 0.9\n'
POST = 'kind = "classification"\noutput = "logits"\nactivation = "softmax"\ntop_k = 3\n'
SERVE = 'bundle = "model.edge"\n'


def make_folder(folder: Path) -> None:
    """model.onnx (a small network for 224x224 photographs), images/ with labels.csv,
    photo.jpg, labels.txt, digits.onnx with its
    data, linear.onnx, samples.npz (one
    digit), samples.csv (all of them), my-board.toml, edgeserve.toml, ci/limits.toml, serve.toml."""
    model = small_cnn()
    del model.graph.output[1]
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 224
    onnx.save(model, folder / "model.onnx")
    onnx.save(linear_model(), folder / "linear.onnx")
    shutil.copy(DIGITS / "digits.onnx", folder / "digits.onnx")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = ["file,label"]
    for index in range(_PHOTOS):
        # Blocks of colour: noise in every pixel looks the same to a network that averages.
        small = random.integers(0, 255, (7, 7, 3), np.uint8)
        Image.fromarray(small).resize((256, 256)).save(folder / "images" / f"{index:02}.png")
        rows.append(f"images/{index:02}.png,{index % _CLASSES}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    samples = np.load(DIGITS.joinpath("digits-samples.npz"))
    np.savez(folder / "samples.npz", image=samples["image"][:1])
    table = samples["image"].reshape(len(samples["image"]), -1)
    header = ",".join(f"image_{i}" for i in range(table.shape[1]))
    np.savetxt(folder / "samples.csv", table, "%g", ",", header=header, comments="")
    shutil.copy(folder / "images" / "00.png", folder / "photo.jpg")
    (folder / "labels.txt").write_text("".join(f"class {i}\n" for i in range(_CLASSES)))
    (folder / "ci").mkdir()
    for name, text in {
        "my-board.toml": BOARD, "edgeserve.toml": LIMITS, "ci/limits.toml": LIMITS,
        "serve.toml": SERVE, "post.toml": POST,
    }.items():  # fmt: skip
        (folder / name).write_text(text)


def run(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A documented `edgeserve …` line in `folder`. A server is stopped once it serves; its port is free."""
    words = [*shlex.split(line, comments=True)[1:], *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESERVE_HTTP_PORT", "0")
        patch.setenv("EDGESERVE_TARGET", "auto")
        return _served(words, folder) if words[0] == "run" else edgeserve(*words, cwd=folder)


def _served(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeserve", *words]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = []
        for said_line in server.stderr:
            said.append(said_line)
            if said_line.startswith("try: "):
                server.send_signal(signal.SIGTERM)
        code = server.wait()
    return subprocess.CompletedProcess(words, code, "", "".join(said))
