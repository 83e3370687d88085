"""FastAPI with Pillow and onnxruntime, as tutorials put an image classifier behind HTTP: a photograph in, the best classes out.

    MODEL=model.onnx LABELS=labels.txt uvicorn benchmarks.peers.fastapi_images:app

The handler is a plain function, so that FastAPI runs it on its threads. Resize, crop and normalisation are those of the
bundle that it is compared with.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import Body, FastAPI
from PIL import Image
from pydantic import BaseModel

OPTIONS = onnxruntime.SessionOptions()
OPTIONS.intra_op_num_threads = int(os.environ.get("THREADS", "0"))
SESSION = onnxruntime.InferenceSession(os.environ["MODEL"], OPTIONS)
INPUT = SESSION.get_inputs()[0].name
LABELS = Path(os.environ["LABELS"]).read_text("utf-8").splitlines()
SIDE = int(os.environ.get("SIDE", "224"))
RATIO = float(os.environ.get("RATIO", "0.875"))
MEAN = np.float32(os.environ.get("MEAN", "127"))
STD = np.float32(os.environ.get("STD", "128"))


class Scored(BaseModel):
    label: str
    score: float
    index: int


class Answer(BaseModel):
    classes: list[Scored]


app = FastAPI()


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


def prepared(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(SIDE / RATIO)
    scale = side / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)[None]


@app.post("/predict")
def predict(data: Annotated[bytes, Body(media_type="image/jpeg")]) -> Answer:
    logits = SESSION.run(None, {INPUT: prepared(data)})[0][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5]
    return Answer(
        classes=[Scored(label=LABELS[i], score=float(shares[i]), index=int(i)) for i in best]
    )
