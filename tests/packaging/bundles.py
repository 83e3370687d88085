"""A bundle whose chain has candidates of two runtimes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import MANIFEST_NAME
from tests.bundles import linear_bundle

TFLITE = Path(__file__).parent.parent / "data" / "small-cnn-int8.tflite"


def two_runtimes(folder: Path) -> Path:
    """`linear.edge` with a TFLite variant in front, and one that no candidate runs."""
    bundle = linear_bundle(folder)
    manifest = json.loads((bundle / MANIFEST_NAME).read_bytes())
    for name in ("tflite-int8", "tflite-fp32"):
        file = bundle / name / "model.tflite"
        file.parent.mkdir()
        shutil.copyfile(TFLITE, file)
        manifest["variants"].append(
            {
                "id": name,
                "format": "tflite",
                "precision": "int8",
                "main": f"{name}/model.tflite",
                "golden_tolerance": 0.5,
                "files": [
                    {
                        "path": f"{name}/model.tflite",
                        "sha256": file_sha256(file),
                        "size_bytes": file.stat().st_size,
                    }
                ],
            }
        )
    first = {"variant": "tflite-int8", "runtime": "litert", "device": "cpu"}
    manifest["chain"].insert(0, first)
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    return bundle
