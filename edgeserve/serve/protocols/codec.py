"""What a protocol brings to be served: how its bytes become a model's request, and outputs its bytes again.

A protocol is a folder: `codec.py` has an InferenceProtocol and its Codec, `routes.py` a list of routes whose infer
route hands requests to `protocols/inference.py`. That finds the model, inflates compressed bodies, moves long work
to threads, bounds what is in flight, keeps deadlines, and drops what no client waits for any more. A codec does none
of that: it knows no socket and no thread, and gets the body whole. Over gRPC, `protocols/grpc_inference.py` does the same
with a MessageCodec.

Errors are EdgeServeErrors. `metrics/reasons.py` has their statuses; over HTTP the protocol's route
list writes their bodies, and may choose another status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.serve.engine import Outcome
from edgeserve.serve.http.response import Form, Headers, Response, form
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.tensors import Tensors

# What the headers of a request say about its body and the answer that is wanted: a content type, a length, None.
T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")
# A subclass of InferRequest with what encoding needs again.
R = TypeVar("R", bound=InferRequest)


class Codec(Protocol[T_contra, R]):
    """Decodes requests for one model and encodes its answers. Made once for each model; used on any thread."""

    def check_size(self, size: int, terms: T_contra) -> None:
        """Whether a body of `size` bytes can be right, asked before it is received.

        Raises InvalidInput; BodyTooLarge, which is answered with 413.
        """

    def text_bytes(self, size: int, terms: T_contra) -> int:
        """How much of a body of `size` bytes takes work to decode, in bytes: JSON, CSV, strings, images. What is
        used as it is, as raw tensors are, is not counted. More than 32 KiB is decoded on a thread."""

    def decode(self, body: bytes | memoryview, terms: T_contra) -> R:
        """The request that a body makes. Its tensors may be views on the body. Raises InvalidInput."""

    def written_bytes(self, request: R, outputs: Tensors) -> int:
        """How much of the wanted outputs takes work to encode, in bytes; called before `encode`. More than 32 KiB
        is encoded on a thread. Raises InvalidInput for an answer that is larger than the server sends."""

    def encode(self, request: R, outputs: Tensors, candidate: Candidate) -> Response:
        """The answer, with a form made by `answer_form`. Raises InvalidInput for outputs that it cannot hold."""


class InferenceProtocol(Protocol[T, R]):
    """What one protocol calls inference."""

    def terms(self, headers: Mapping[bytes, bytes]) -> T:
        """What headers ask for; names are in lower case. Called once for heads that repeat.

        Raises InvalidInput; NoRoute with the refusal, such as 415 for a content type that is not read.
        """

    def codec(self, model: ServedModel) -> Codec[T, R]:
        """The codec of a model."""


def answer_form(candidate: Candidate, content_type: str, headers: Headers = ()) -> Form:
    """The status and headers of an answer that a candidate computed."""
    return form(200, content_type, (("x-edgeserve-device", candidate.device), *headers))


# gRPC


class Parsed(msgspec.Struct, frozen=True):
    """A message of which nothing but the envelope is read. `id` is the client's own; empty: it has none."""

    model: str
    id: str


class Decoded(Parsed, frozen=True):
    """A request before its model is known. `version` None: the newest."""

    version: str | None

    def binds_long(self, model: ServedModel) -> bool:
        """Whether `bind` takes long for this model, as reading images does: it is then called on a thread."""
        return False


M = TypeVar("M", bound=Parsed)
D = TypeVar("D", bound=Decoded)


class MessageCodec(Protocol[M, D, R]):
    """Decodes one kind of message, for all models, and encodes the answers. Used on any thread."""

    def parse(self, message: bytes) -> M:
        """The envelope of a serialized message. Raises InvalidInput."""

    def decode(self, parsed: M) -> D:
        """All that can be read without the model. Raises InvalidInput."""

    def bind(self, decoded: D, model: ServedModel, remaining_s: float | None) -> R:
        """The request for a model; `remaining_s` is what the client's deadline leaves. On the event loop: what
        takes long belongs into `decode`, unless `binds_long`. Raises EdgeServeError."""

    def written_bytes(self, request: R, outputs: Tensors) -> int:
        """About how large the answer is, in bytes; called before `encode`. Raises InvalidInput for an answer that is
        larger than the server sends."""

    def encode(self, request: R, model: ServedModel, result: Outcome) -> bytes:
        """The serialized answer. Raises EdgeServeError."""
