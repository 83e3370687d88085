"""Asks a running server about labelled digits, as any client would."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from edgeserve.bundle.files import load_npz
from edgeserve.client import Question, connect


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
    """Send labelled samples one by one. Raises what `edgeserve.client` raises."""
    data = load_npz(samples)
    images, labels = data["image"][:count], data["label"][:count]
    with connect(url) as client:
        began = time.perf_counter()
        answers = [client.infer(model, Question({"image": image[None]})) for image in images]
        elapsed = time.perf_counter() - began
    scores = np.concatenate([answer.outputs["logits"] for answer in answers])
    return Answers(
        samples=len(images),
        right=int((scores.argmax(axis=1) == labels).sum()),
        device=answers[-1].where.device or "unknown",
        requests_per_s=len(images) / elapsed,
        example_image=tuple(tuple(float(v) for v in row) for row in images[0, 0]),
        example_label=int(labels[0]),
        example_scores=tuple(float(v) for v in scores[0]),
    )
