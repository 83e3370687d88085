"""The second protocol over gRPC: /rows.Rows/Run takes {"model": NAME, "rows": [[...]]} as JSON, answers a list of rows."""

import msgspec
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool

from edgeserve.errors import InvalidInput
from edgeserve.serve.engine import Outcome
from edgeserve.serve.grpc.service import GrpcService, Infer
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.codec import Decoded, Parsed
from edgeserve.serve.protocols.grpc_inference import ServedCalls
from edgeserve.tensors import Tensors


class Envelope(Parsed, frozen=True):
    rows: msgspec.Raw


class Question(Decoded, frozen=True):
    rows: np.ndarray


class RowsMessages:
    def parse(self, message: bytes) -> Envelope:
        try:
            return msgspec.json.decode(b'{"id":"",' + message[1:], type=Envelope)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"not rows: {error}") from None

    def decode(self, parsed: Envelope) -> Question:
        rows = np.array(msgspec.json.decode(parsed.rows), np.float32)
        return Question(parsed.model, parsed.id, None, rows)

    def bind(
        self, decoded: Question, model: ServedModel, remaining_s: float | None
    ) -> InferRequest:
        inputs = {model.interface.inputs[0].name: decoded.rows}
        wanted = (model.interface.outputs[0].name,)
        rows = model.interface.check(inputs)
        return InferRequest(inputs, rows, wanted, timeout_s=remaining_s)

    def written_bytes(self, request: InferRequest, outputs: Tensors) -> int:
        return outputs[request.outputs[0]].nbytes

    def encode(self, request: InferRequest, model: ServedModel, result: Outcome) -> bytes:
        return msgspec.json.encode(result.outputs[request.outputs[0]].tolist())


def rows_service(served: ServedCalls) -> GrpcService:
    file = descriptor_pb2.FileDescriptorProto(name="rows.proto", package="rows")
    file.service.add(name="Rows")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    run = Infer("Run", served.inferences.starting(RowsMessages()))
    return GrpcService("rows.Rows", pool.FindFileByName("rows.proto"), (run,))
