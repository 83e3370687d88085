"""The embedded digits model as a bundle whose first candidate is a GPU. Needs no onnx package."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import numpy as np
import onnxruntime

import edgeserve.demo
from edgeserve.bundle import Candidate, Golden, Manifest, Source, Task, Variant
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import SCHEMA_VERSION, Option
from edgeserve.bundle.writing import bundle_writer
from edgeserve.tensors import Interface, TensorSpec

ONNX = Path(edgeserve.demo.__file__).parent / "files" / "digits.onnx"
TFLITE = Path(__file__).parent.parent / "data" / "digits-fp32.tflite"
DIGITS = Interface(
    (TensorSpec("image", "FP32", ("batch", 1, 8, 8)),),
    (TensorSpec("logits", "FP32", ("batch", 10)),),
    max_batch=16,
)


def images(count: int, seed: int = 0) -> np.ndarray:
    """FP32[count,1,8,8], of the digits' range."""
    return np.random.default_rng(seed).uniform(0, 16, (count, 1, 8, 8)).astype(np.float32)


def logits(inputs: np.ndarray) -> np.ndarray:
    """What the source model says, on the CPU."""
    session = onnxruntime.InferenceSession(str(ONNX), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["logits"], {"image": inputs})[0]
    return result


def digits_bundle(folder: Path, runtime: str, options: dict[str, Option]) -> Path:
    """`folder/digits.edge`, its chain RUNTIME on the GPU and then on the CPU."""
    file, kind, batch = (TFLITE, "tflite", 1) if runtime == "litert" else (ONNX, "onnx", 0)
    variant = f"{kind}-fp32"
    destination = folder / "digits.edge"
    with bundle_writer(destination) as writer:
        (writer.root / variant).mkdir()
        main = f"{variant}/model{file.suffix}"
        shutil.copyfile(file, writer.root / main)
        golden = images(3, seed=7)
        np.savez(writer.root / "golden-inputs.npz", image=golden)
        np.savez(writer.root / "golden-outputs.npz", logits=logits(golden))
        entry = writer.entry(main)
        writer.write_manifest(
            Manifest(
                schema_version=SCHEMA_VERSION,
                name="digits",
                created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                target="webgpu",
                source=Source("onnx", ONNX.name, file_sha256(ONNX), ONNX.stat().st_size, opset=17),
                interface=DIGITS,
                task=Task(),
                variants=(
                    Variant(
                        id=variant,
                        format=kind,
                        precision="fp32",
                        main=entry.path,
                        files=(entry,),
                        golden_tolerance=1e-3,
                        batch=batch,
                    ),
                ),
                chain=(
                    Candidate(variant, runtime, "gpu", options=options),
                    Candidate(variant, runtime, "cpu"),
                ),
                golden=Golden(
                    writer.entry("golden-inputs.npz"), writer.entry("golden-outputs.npz"), 3
                ),
                tools={"edgeserve": "test"},
            )
        )
    return destination
