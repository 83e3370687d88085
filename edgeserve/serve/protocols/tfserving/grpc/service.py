"""tensorflow.serving.PredictionService and ModelService: their methods, and what answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeserve.errors import InvalidInput, ModelNotFound
from edgeserve.serve.grpc.service import Ask, GrpcService, Infer
from edgeserve.serve.protocols.grpc_inference import ServedCalls
from edgeserve.serve.protocols.tfserving.about import DT, failure_of
from edgeserve.serve.protocols.tfserving.codec import SIGNATURE
from edgeserve.serve.protocols.tfserving.grpc import messages
from edgeserve.serve.protocols.tfserving.grpc.codec import (
    ClassifyMessages,
    PredictMessages,
    RegressMessages,
    spec_of,
    version_of,
)
from edgeserve.tensors import TensorSpec

if TYPE_CHECKING:
    from edgeserve.serve.protocols.tfserving.grpc.messages import (
        GetModelMetadataRequest,
        GetModelMetadataResponse,
        GetModelStatusRequest,
        GetModelStatusResponse,
        TensorInfo,
    )

_FIELD: Final = "signature_def"
# Numbers of tensorflow_serving/apis/get_model_status.proto, and of a google.rpc.Code.
_STATES: Final = {"READY": 30, "LOADING": 20, "UNLOADING": 40, "UNAVAILABLE": 50}
_UNAVAILABLE: Final = 14


def prediction_service(served: ServedCalls) -> GrpcService:
    """The service that runs models."""
    about, start = _About(served), served.inferences.starting
    return GrpcService(
        "tensorflow.serving.PredictionService",
        messages.DESCRIPTOR,
        (
            Infer("Predict", start(PredictMessages(served.limits))),
            Infer("Classify", start(ClassifyMessages(served.limits))),
            Infer("Regress", start(RegressMessages(served.limits))),
            Ask("GetModelMetadata", about.metadata, messages.GetModelMetadataRequest),
        ),
    )


def model_service(served: ServedCalls) -> GrpcService:
    """The service that tells the status of models."""
    about = _About(served)
    return GrpcService(
        "tensorflow.serving.ModelService",
        messages.DESCRIPTOR,
        (Ask("GetModelStatus", about.status, messages.GetModelStatusRequest),),
    )


SERVICES: Final = (prediction_service, model_service)


class _About:
    """Answers questions about models."""

    def __init__(self, served: ServedCalls) -> None:
        self._served = served

    async def metadata(self, request: GetModelMetadataRequest) -> GetModelMetadataResponse:
        """Raises InvalidInput, ModelNotFound."""
        fields = list(request.metadata_field)
        if not fields or set(fields) != {_FIELD}:
            raise InvalidInput(
                f"metadata_field: expected {_FIELD}, got {', '.join(fields) or 'nothing'}"
            )
        version = version_of(request.model_spec)
        model = self._served.repository.find(request.model_spec.name, version)
        found = messages.SignatureDefMap()
        signature = found.signature_def[SIGNATURE]
        signature.method_name = "tensorflow/serving/predict"
        for spec in model.interface.inputs:
            _describe(signature.inputs[spec.name], spec)
        for spec in model.interface.outputs:
            _describe(signature.outputs[spec.name], spec)
        answer = messages.GetModelMetadataResponse(model_spec=spec_of(model))
        answer.metadata[_FIELD].Pack(found)
        return answer

    async def status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """Raises InvalidInput, ModelNotFound."""
        name, version = request.model_spec.name, version_of(request.model_spec)
        status = await self._served.control.status()
        found = [s for s in status.models if s.name == name and version in (None, s.version)]
        if not found:
            raise ModelNotFound(f"Could not find any versions of model {name:.128}")
        answer = messages.GetModelStatusResponse()
        for each in sorted(found, key=lambda s: -int(s.version)):
            entry = answer.model_version_status.add(
                version=int(each.version), state=_STATES[each.state]
            )
            entry.status.SetInParent()
            failure = failure_of(each)
            if failure is not None:
                entry.status.error_code = _UNAVAILABLE
                entry.status.error_message = failure
        return answer


def _describe(info: TensorInfo, spec: TensorSpec) -> None:
    info.name = f"{spec.name}:0"
    info.dtype = DT[spec.dtype][1]
    for size in spec.wire_shape:
        info.tensor_shape.dim.add(size=size)
