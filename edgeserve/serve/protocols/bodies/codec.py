"""What the codecs of several protocols share: the request, how much work a body and an answer are, and media types of
answers."""

from __future__ import annotations

from typing import Any, Final

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.postprocess import AnswerOptions
from edgeserve.preprocess import Frame
from edgeserve.serve.http.response import JSON, Headers, Response
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.values import Read, ValueReader
from edgeserve.serve.protocols.bodies.written import ValueWriter
from edgeserve.serve.protocols.codec import answer_form
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors
from edgeserve.wire import binary
from edgeserve.wire.written import NotFinite

# More than what is decoded on the event loop: an image takes milliseconds, however small it is.
IMAGE_WORK: Final = 32_769
# Images are decoded side by side; larger texts are read one at a time.
IMAGE_MOST: Final = 1_048_576


class BodyRequest(InferRequest, frozen=True):
    """A request with what writing its answer needs. `form` is the protocol's word for how it was asked, `accept` the
    media type of the answer. `whole`: the model has no axis for rows. `frames` say where images are in the input."""

    form: str = ""
    accept: str = JSON
    whole: bool = False
    frames: tuple[Frame, ...] = ()
    options: AnswerOptions = AnswerOptions()


class BodyCodec:
    """The base of a codec of one model: its terms are the protocol's."""

    def __init__(self, model: ServedModel, limits: Limits, not_finite: NotFinite = "token") -> None:
        self.model = model
        self.interface = model.interface
        self.limits = limits
        self.names = tuple(spec.name for spec in self.interface.outputs)
        self.reader = ValueReader(self.interface, limits, model.images)
        self.writer = ValueWriter(self.interface, not_finite, most=limits.output_bytes)
        self._texts = any(spec.dtype == "BYTES" for spec in self.interface.outputs)

    def check_size(self, size: int, terms: Any) -> None:
        """Bodies of these forms have any length that the server takes."""

    def text_bytes(self, size: int, terms: Any) -> int:
        """All of it is read; that of a model which takes images may hold some."""
        if self.model.images is not None:
            return min(max(size, IMAGE_WORK), IMAGE_MOST)
        return size

    def written_bytes(self, request: BodyRequest, outputs: Tensors) -> int:
        """Raises InvalidInput for more than the server sends."""
        size = sum(
            binary.content_bytes(outputs[name]) if self._texts else outputs[name].nbytes
            for name in request.outputs
        )
        if size > self.limits.output_bytes:
            raise InvalidInput(
                f"the outputs are {size} bytes; the limit is {self.limits.output_bytes}"
            )
        return size

    def request(
        self,
        read: Read,
        form: str,
        *,
        accept: str = JSON,
        outputs: tuple[str, ...] = (),
        options: AnswerOptions | None = None,
        identity: str | None = None,
        timeout_s: float | None = None,
    ) -> BodyRequest:
        """Of inputs that have been read; all outputs are wanted unless some are named."""
        return BodyRequest(
            read.inputs,
            read.rows,
            outputs or self.names,
            identity,
            timeout_s,
            0,
            form,
            accept,
            read.whole,
            read.frames,
            options or AnswerOptions(),
        )


def answer(
    candidate: Candidate, parts: list[Any], media: str = JSON, more: Headers = ()
) -> Response:
    """An answer that a candidate computed."""
    return Response(answer_form(candidate, media, more), parts)
