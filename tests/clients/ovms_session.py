"""Asks a server with ovmsclient, and prints what it made of the answers: KIND (http, grpc) HOST:PORT."""

from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")
import numpy as np  # noqa: E402
import ovmsclient  # noqa: E402

kind, where = sys.argv[1:]
client = (ovmsclient.make_grpc_client if kind == "grpc" else ovmsclient.make_http_client)(where)
x = np.array([1.0, 2.0], np.float32)


def failure(model: str, given: object) -> str:
    try:
        client.predict({"x": given}, model)
    except Exception as error:
        return type(error).__name__
    return "nothing"


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    array = np.asarray(value)
    if array.dtype.kind in "SUO":
        return [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
    return array.tolist()


def _inputs(told: dict[str, object]) -> object:
    """Over HTTP this client hands on what the server says."""
    if "inputs" not in told:
        told = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    return told["inputs"]


metadata = client.get_model_metadata("half")
print(
    json.dumps(
        {
            "status": {str(k): v for k, v in client.get_model_status("half").items()},
            "inputs": _inputs(metadata),
            "newest": plain(client.predict({"x": x}, "half")),
            "first": plain(client.predict({"x": x}, "half", model_version=1)),
            "two": plain(
                client.predict(
                    {"a": np.array([[1, 2]], np.float32), "b": np.array([1], np.float32)}, "two"
                )
            ),
            "texts": plain(client.predict({"x": [[b"a", "é".encode()]]}, "types-bytes")),
            "whole": plain(
                client.predict({"x": np.array([[-(2**63), 2**63 - 1]], np.int64)}, "types-int64")
            ),
            "unknown": failure("none", x),
            "wrong": failure("half", np.zeros((2, 2), np.float32)),
        }
    )
)
