"""Runs in an environment of its own: TensorFlow Serving's own stubs ask a server, and print in JSON what it answered.

python tfserving_session.py HOST:PORT
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool


def without_tensorflow() -> None:
    """Two files that the stubs import come with TensorFlow alone: numbers of statuses, and their old name."""
    codes = descriptor_pb2.FileDescriptorProto(
        name="xla/tsl/protobuf/error_codes.proto", package="tensorflow.error", syntax="proto3"
    )
    code = codes.enum_type.add(name="Code")
    for number, name in ((0, "OK"), (3, "INVALID_ARGUMENT"), (5, "NOT_FOUND"), (14, "UNAVAILABLE")):
        code.value.add(name=name, number=number)
    old = descriptor_pb2.FileDescriptorProto(
        name="tensorflow/core/protobuf/error_codes.proto",
        dependency=[codes.name],
        public_dependency=[0],
    )
    for file in (codes, old):
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    module = types.ModuleType("tensorflow.core.protobuf.error_codes_pb2")
    module.xla_dot_tsl_dot_protobuf_dot_error__codes__pb2 = None  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


without_tensorflow()
import grpc  # noqa: E402
from google.protobuf import json_format  # noqa: E402
from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

channel = grpc.insecure_channel(sys.argv[1])
prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
model = model_service_pb2_grpc.ModelServiceStub(channel)


def tensor(dtype: int, shape: list[int], **values: Any) -> Any:
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def predict(name: str, version: int | None = None, **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value)
    return prediction.Predict(request, timeout=30)


def examples(request: Any, name: str, feature: str, rows: list[list[float]]) -> Any:
    request.model_spec.name = name
    for row in rows:
        example = request.input.example_list.examples.add()
        example.features.feature[feature].float_list.value.extend(row)
    return request


def failure(call: Any) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "nothing"


floats = tensor(types_pb2.DT_FLOAT, [2], float_val=[1, 2])
newest = predict("half", x=floats)
status = get_model_status_pb2.GetModelStatusRequest()
status.model_spec.name = "half"
metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
metadata.model_spec.name = "half"
signatures = get_model_metadata_pb2.SignatureDefMap()
prediction.GetModelMetadata(metadata).metadata["signature_def"].Unpack(signatures)
text = tensor(types_pb2.DT_STRING, [1, 2], string_val=[b"a", "é".encode()])
image = examples(classification_pb2.ClassificationRequest(), "colours", "image", [[0.0] * 128 + [1.0] * 64])  # fmt: skip
print(
    json.dumps(
        {
            "newest": json_format.MessageToDict(newest, preserving_proto_field_name=True),
            "first": list(predict("half", 1, x=floats).outputs["y"].float_val),
            "zero": list(predict("half", 0, x=floats).outputs["y"].float_val),
            "texts": [t.decode() for t in predict("types-bytes", x=text).outputs["y"].string_val],
            "status": json_format.MessageToDict(
                model.GetModelStatus(status), preserving_proto_field_name=True
            ),
            "signature": json_format.MessageToDict(signatures.signature_def["serving_default"]),
            "classes": [
                c.label for c in prediction.Classify(image).result.classifications[0].classes
            ],
            "numbers": [
                r.value
                for r in prediction.Regress(
                    examples(regression_pb2.RegressionRequest(), "half", "x", [[1.0], [5.0]])
                ).result.regressions
            ],
            "unknown": failure(lambda: predict("none", x=floats)),
            "several": failure(
                lambda: prediction.MultiInference(inference_pb2.MultiInferenceRequest())
            ),
            "reload": failure(
                lambda: model.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
            ),
        }
    )
)
