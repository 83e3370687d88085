"""A second protocol, as small as one can be: POST /rows/MODEL with a JSON list of rows, answered with one."""

from collections.abc import Mapping

import msgspec
import numpy as np

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.http.response import JSON, ErrorResponse, Refusal, Response
from edgeserve.serve.http.route import Answer, Asked, NoRoute, Route, RouteList
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.codec import answer_form
from edgeserve.serve.protocols.context import Served
from edgeserve.tensors import Interface, Tensors


class RowsCodec:
    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._input, self._output = interface.inputs[0].name, interface.outputs[0].name

    def check_size(self, size: int, terms: None) -> None:
        if size > 100_000:
            raise BodyTooLarge("rows are at most 100000 bytes")

    def text_bytes(self, size: int, terms: None) -> int:
        return size

    def decode(self, body: bytes | memoryview, terms: None) -> InferRequest:
        try:
            rows = np.array(msgspec.json.decode(body, type=list[list[float]]), np.float32)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidInput(f"not rows: {error}") from None
        inputs = {self._input: rows}
        return InferRequest(inputs, self._interface.check(inputs), (self._output,))

    def written_bytes(self, request: InferRequest, outputs: Tensors) -> int:
        return outputs[self._output].nbytes

    def encode(self, request: InferRequest, outputs: Tensors, candidate: Candidate) -> Response:
        body = msgspec.json.encode(outputs[self._output].tolist())
        return Response(answer_form(candidate, JSON), [body])


class Rows:
    def terms(self, headers: Mapping[bytes, bytes]) -> None:
        if headers.get(b"content-type") != b"application/json":
            raise NoRoute(Refusal(415, "content_type", "rows are application/json"))

    def codec(self, model: ServedModel) -> RowsCodec:
        return RowsCodec(model.interface)


def write_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    return 422 if error.status == 400 else error.status, "text/plain", error.message.encode()


def infer(served: Served, asked: Asked) -> Answer:
    return served.inference.route(ROWS, asked.values["model"], None, asked.head.headers)


ROWS = Rows()
ROUTES = (Route("POST", "/rows/{model}", Role.INFER, infer, "Run rows", most=None),)
ROWS_ROUTES = RouteList("rows", ROUTES, str, write_error)
