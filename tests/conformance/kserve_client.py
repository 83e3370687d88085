"""Runs in an environment of its own: KServe's client asks a server and says in JSON what it heard.

python kserve_client.py HTTP_URL [GRPC_ADDRESS]
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig

X = np.arange(8, dtype=np.float32).reshape(2, 4) - 3


def request(binary: bool) -> InferRequest:
    tensor = InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary)
    parameters = {"binary_data_output": True} if binary else None
    return InferRequest(model_name="linear", infer_inputs=[tensor], parameters=parameters)


def heard(response: Any) -> list[list[float]]:
    return response.outputs[0].as_numpy().tolist()


async def rest(url: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "linear"),
        "json": heard(await client.infer(url, request(False), model_name="linear")),
        "binary": heard(await client.infer(url, request(True), model_name="linear")),
    }
    await client.close()
    return found


async def grpc(address: str) -> dict[str, Any]:
    client = InferenceGRPCClient(address)
    found = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("linear"),
        "raw": heard(await client.infer(request(True))),
        "typed": heard(await client.infer(request(False))),
    }
    await client.close()
    return found


async def main() -> None:
    found = {"rest": await rest(sys.argv[1])}
    if len(sys.argv) > 2:
        found["grpc"] = await grpc(sys.argv[2])
    print(json.dumps(found))


asyncio.run(main())
