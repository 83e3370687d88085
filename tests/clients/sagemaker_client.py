"""Asks a server as the SageMaker SDK and boto3 do, unchanged; prints what they made of the answers as JSON.

Runs in an environment of its own: `sagemaker_client.py PORT PHOTOGRAPH`. The models are `double` (y = 2x), `colours`
(a classifier of photographs) and `m`, with versions 1 (x + 1) and 2 (x + 2).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import boto3
import numpy as np
from botocore.config import Config
from botocore.exceptions import ClientError
from sagemaker.deserializers import (
    BytesDeserializer,
    CSVDeserializer,
    JSONDeserializer,
    JSONLinesDeserializer,
    NumpyDeserializer,
    StreamDeserializer,
    StringDeserializer,
)
from sagemaker.local import LocalSession
from sagemaker.local.local_session import LocalSagemakerRuntimeClient
from sagemaker.predictor import Predictor
from sagemaker.serializers import (
    CSVSerializer,
    DataSerializer,
    IdentitySerializer,
    JSONLinesSerializer,
    JSONSerializer,
    LibSVMSerializer,
    NumpySerializer,
    StringSerializer,
)
from sagemaker.tensorflow import TensorFlowPredictor

PORT, PHOTOGRAPH = int(sys.argv[1]), sys.argv[2]
ROWS = [[1, 2], [3, 4]]


def plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, tuple):  # a stream and its content type
        return value[0].read().decode()
    return value.decode() if isinstance(value, bytes) else value


def noted(call: Callable[[], Any]) -> Any:
    try:
        return plain(call())
    except ClientError as error:
        return {
            "status": error.response["ResponseMetadata"]["HTTPStatusCode"],
            "code": error.response["Error"]["Code"],
            "error": str(error),
        }


def local_session() -> LocalSession:
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    session = LocalSession(boto3.Session(**keys))
    session.sagemaker_runtime_client = LocalSagemakerRuntimeClient(
        {"local": {"serving_port": PORT}}
    )
    return session


SESSION = local_session()


def predict(
    data: Any, serializer: Any, deserializer: Any, target: str | None = "double", **more: Any
) -> Callable[[], Any]:
    predictor = Predictor("device", SESSION, serializer, deserializer)
    return lambda: predictor.predict(data, target_model=target, **more)


def tensorflow() -> Any:
    predictor = TensorFlowPredictor("device", SESSION, model_name="m", model_version="1")
    return predictor.predict({"instances": [[0, 0, 0, 0]]})


def boto(body: bytes, endpoint: str = "double", **more: Any) -> Callable[[], Any]:
    client = boto3.client(
        "sagemaker-runtime", endpoint_url=f"http://127.0.0.1:{PORT}", region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x", config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip

    def call() -> Any:
        answer = client.invoke_endpoint(EndpointName=endpoint, Body=body, **more)
        return {
            "body": answer["Body"].read().decode(),
            "type": answer.get("ContentType"),
            "attributes": answer.get("CustomAttributes"),
        }

    return call


CALLS: dict[str, Callable[[], Any]] = {
    "json": predict({"instances": ROWS}, JSONSerializer(), JSONDeserializer()),
    "json rows": predict(ROWS, JSONSerializer(), JSONDeserializer()),
    "csv": predict(ROWS, CSVSerializer(), CSVDeserializer()),
    "npy": predict(np.array(ROWS, np.float32), NumpySerializer(), NumpyDeserializer()),
    "npy of float64": predict(ROWS, NumpySerializer(), JSONDeserializer()),
    "json lines": predict(ROWS, JSONLinesSerializer(), JSONLinesDeserializer()),
    "string": predict("[[1, 2]]", StringSerializer(), StringDeserializer()),
    "bytes": predict(b"[[1, 2]]", IdentitySerializer("application/json"), BytesDeserializer()),
    "stream": predict(ROWS, JSONSerializer(), StreamDeserializer()),
    "photograph": predict(PHOTOGRAPH, DataSerializer(), JSONDeserializer(), "colours"),
    "photograph with its type": predict(
        PHOTOGRAPH, DataSerializer(content_type="image/jpeg"), JSONDeserializer(), "colours.tar.gz"
    ),
    "libsvm": predict("1 1:2", LibSVMSerializer(), JSONDeserializer()),
    "variant": predict(
        [[0, 0, 0, 0]], JSONSerializer(), JSONDeserializer(), "m", target_variant="1", inference_id="id-1"
    ),
    "tensorflow": tensorflow,
    "boto3": boto(b"[[1, 2]]", ContentType="application/json", CustomAttributes="trace=1"),
    "boto3 without a type": boto(b"[[1, 2]]"),
    "boto3 csv": boto(b"1,2\n", ContentType="text/csv", Accept="text/csv"),
    "boto3 target model": boto(b"[[0, 0, 0, 0]]", "any", TargetModel="m", TargetVariant="2"),
    "boto3 error": boto(b"[["),
    "boto3 unknown model": boto(b"[[1]]", TargetModel="nobody.tar.gz"),
}  # fmt: skip

print(json.dumps({name: noted(call) for name, call in CALLS.items()}))
