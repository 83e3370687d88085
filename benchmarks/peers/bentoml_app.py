"""BentoML: numbers as JSON, an image as base64 in JSON."""

import base64
import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime


def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(os.environ["MODELS"]) / f"{name}.onnx"
    return onnxruntime.InferenceSession(str(path), options)


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Onnx:
    def __init__(self) -> None:
        self._linear, self._image = session("linear"), session("image")

    @bentoml.api
    def linear(self, x: list[list[float]]) -> list[list[float]]:
        return self._linear.run(None, {"x": np.array(x, np.float32)})[0].tolist()

    @bentoml.api
    def image(self, image: str) -> list[list[float]]:
        data = np.frombuffer(base64.b64decode(image), np.float32).reshape(1, 3, 224, 224)
        return self._image.run(None, {"x": data})[0].tolist()
