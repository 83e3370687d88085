"""The scoring route of Azure Machine Learning: what its users' scoring scripts read, as bodies or in the query.

Sources: azmlinfsrv 1.5.1, as recorded; https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edgeserve.errors import InvalidInput
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.dialects import (
    Dialect,
    DialectCodec,
    DialectTerms,
    answer_media,
)
from edgeserve.serve.protocols.bodies.media import QUERY, media_of, query_of
from edgeserve.serve.protocols.codec import InferenceProtocol
from edgeserve.serve.settings.limits import Limits
from edgeserve.wire.text import check_depth, parse_json


class ScoreBody(msgspec.Struct, frozen=True):
    """Rows; or a data frame as MLflow writes one."""

    data: list[Any] = []
    input_data: dict[str, Any] = {}


class ScoreTerms(DialectTerms, frozen=True):
    """With the query, for requests without a body."""

    query: bytes = b""


class AzureMl:
    """What protocols/inference.py serves."""

    def __init__(self, limits: Limits, v2: InferenceProtocol[int | None, InferRequest]) -> None:
        self._limits = limits
        self._v2 = v2

    def terms(self, headers: Mapping[bytes, bytes]) -> ScoreTerms:
        """Raises NoRoute for what is not read or written."""
        media = media_of(headers.get(b"content-type"), "")
        return ScoreTerms(media, answer_media(media, headers), None, headers.get(QUERY, b""))

    def codec(self, model: ServedModel) -> ScoreCodec:
        return ScoreCodec(model, self._limits, self._v2.codec(model), Dialect.BARE)


class ScoreCodec(DialectCodec):
    """Of one model."""

    def decode(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        if not body and isinstance(terms, ScoreTerms):
            return self._of_query(terms)
        return super().decode(body, terms)

    def _of_query(self, terms: ScoreTerms) -> InferRequest:
        """What the query holds: the fields of the JSON, each as JSON. Raises InvalidInput."""
        given = query_of(terms.query)
        if not given:
            raise InvalidInput("the request has neither a body nor a query: expected data")
        document = {}
        for name, text in given.items():
            data = text.encode()
            check_depth(data, self.limits.json_depth)
            document[name] = parse_json(data)
        return self.of_document(document, terms.accept)
