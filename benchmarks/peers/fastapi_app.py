"""What people write by hand: FastAPI, pydantic, onnxruntime. uvicorn with uvloop and httptools runs it.

`MODELS` is a folder with linear.onnx (x FP32[batch,4]) and image.onnx (x FP32[batch,3,224,224]).
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Infer(BaseModel):
    inputs: list[Tensor]


class Inferred(BaseModel):
    model_name: str
    outputs: list[Tensor]


def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(os.environ["MODELS"]) / f"{name}.onnx"
    return onnxruntime.InferenceSession(str(path), options)


app = FastAPI()
sessions = {name: session(name) for name in ("linear", "image")}


def answer(name: str, x: np.ndarray) -> Inferred:
    (y,) = sessions[name].run(None, {"x": x})
    data = Tensor(name="y", shape=list(y.shape), datatype="FP32", data=y.ravel().tolist())
    return Inferred(model_name=name, outputs=[data])


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/models/{name}/infer")
async def infer(name: str, request: Infer) -> Inferred:
    tensor = request.inputs[0]
    return answer(name, np.array(tensor.data, np.float32).reshape(tensor.shape))


@app.post("/models/{name}/raw")
async def raw(name: str, request: Request) -> Inferred:
    body = await request.body()
    return answer(name, np.frombuffer(body, np.float32).reshape(1, 3, 224, 224))
