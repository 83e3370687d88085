"""The routes of Amazon SageMaker's container contract."""

from __future__ import annotations

from typing import Final

from edgeserve.serve.http.response import PlainError, plain_error
from edgeserve.serve.http.route import Route, RouteList
from edgeserve.serve.protocols.context import Served

_ROUTES: Final[tuple[Route[Served], ...]] = ()


def routes() -> RouteList[Served]:
    """The list; made once for a server."""
    return RouteList(
        "sagemaker", _ROUTES, PlainError, plain_error, title="Amazon SageMaker's container contract"
    )
