"""A plain HTTP client of the Open Inference Protocol v2, with the standard library and numpy alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeserve.bundle.reading import load_npz
from edgeserve.errors import InferenceFailed


class Answers(msgspec.Struct, frozen=True):
    """What a server made of labelled samples, and one exchange in full."""

    samples: int
    right: int
    device: str
    requests_per_s: float
    example_image: tuple[tuple[float, ...], ...]
    example_label: int
    example_scores: tuple[float, ...]


def ask(url: str, model: str, samples: Path, count: int = 200) -> Answers:
    """Send labelled samples one by one as JSON. Raises InferenceFailed when the server refuses one."""
    data = load_npz(samples)
    images, labels = data["image"][:count], data["label"][:count]
    right, device = 0, ""
    first: tuple[float, ...] = ()
    began = time.perf_counter()
    for image, label in zip(images, labels, strict=True):
        request = {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, *image.shape],
                    "datatype": "FP32",
                    "data": image.reshape(-1).tolist(),
                }
            ]
        }
        answer = _post(f"{url}/v2/models/{model}/infer", request)
        scores = answer["outputs"][0]["data"]
        first = first or tuple(scores)
        right += int(np.argmax(scores)) == int(label)
        device = answer.get("parameters", {}).get("edgeserve_device", "unknown")
    elapsed = time.perf_counter() - began
    picture = tuple(tuple(float(v) for v in row) for row in images[0, 0])
    return Answers(
        len(images), right, device, len(images) / elapsed, picture, int(labels[0]), first
    )


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the caller's own server
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.loads(response.read())
    except (urllib.error.URLError, ValueError) as error:
        raise InferenceFailed(f"{url} did not answer", cause=str(error)) from error
