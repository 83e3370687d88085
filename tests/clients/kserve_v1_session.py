"""Runs in an environment of its own: KServe's client asks a server in version 1 of its protocol, and prints in JSON what
it made of the answers.

python kserve_v1_session.py URL
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kserve.inference_client import InferenceRESTClient, RESTConfig


async def main(url: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v1"))

    async def failure(call: Any) -> str:
        try:
            await call
        except Exception as error:
            return str(error)
        return "nothing"

    rows = {"instances": [1.0, 2.0]}
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_model_ready(url, "half"),
        "not_ready": await client.is_model_ready(url, "broken"),
        "unknown_ready": await failure(client.is_model_ready(url, "none")),
        "predict": await client.infer(url, rows, model_name="half"),
        "explain": await failure(client.explain(url, "half", rows)),
        "unknown": await failure(client.infer(url, rows, model_name="none")),
        "wrong": await failure(client.infer(url, {"instances": ["a"]}, model_name="half")),
    }
    await client.close()
    return found


print(json.dumps(asyncio.run(main(sys.argv[1]))))
