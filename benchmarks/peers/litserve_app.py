"""LitServe: numbers as JSON, an image as base64 in JSON."""

import base64
import os
import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime


class Onnx(litserve.LitAPI):
    def __init__(self, name: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._name = name

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(os.environ["MODELS"]) / f"{self._name}.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options)

    def decode_request(self, request: dict) -> np.ndarray:
        if "image" in request:
            data = base64.b64decode(request["image"])
            return np.frombuffer(data, np.float32).reshape(1, 3, 224, 224)
        return np.array(request["x"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"x": x})[0]

    def encode_response(self, y: np.ndarray) -> dict:
        return {"y": y.ravel().tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Onnx(sys.argv[2]), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error"
    )
