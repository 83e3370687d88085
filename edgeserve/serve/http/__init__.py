"""The HTTP server of the data plane: asyncio.Protocol on llhttp, routes, limits. No framework."""

from edgeserve.serve.http.connection import Connection, Request, Response
from edgeserve.serve.http.limits import Limits

__all__ = ["Connection", "Limits", "Request", "Response"]
