"""Asks a server with google-cloud-aiplatform's own client over REST, and prints the answers: URL."""

from __future__ import annotations

import json
import sys

from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1 import PredictionServiceClient
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict

(url,) = sys.argv[1:]
client = PredictionServiceClient(
    transport="rest", credentials=AnonymousCredentials(), client_options={"api_endpoint": url}
)
endpoint = "projects/p/locations/l/endpoints/1"


def value(of: object) -> struct_pb2.Value:
    found = struct_pb2.Value()
    found.list_value.extend(of)
    return found


good = client.predict(endpoint=endpoint, instances=[value([1.0, 2.0]), value([3.0, 4.0])])
try:
    client.predict(endpoint=endpoint, instances=[struct_pb2.Value(string_value="x")])
    error = "nothing"
except Exception as caught:
    error = f"{type(caught).__name__}: {caught}"
print(
    json.dumps({"predictions": MessageToDict(type(good).pb(good))["predictions"], "error": error})
)
