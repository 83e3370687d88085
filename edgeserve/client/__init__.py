"""A small client of the Open Inference Protocol v2: what the command line and the demo ask servers with.

It stands on `wire`, as the server does, and on nothing of the server.
"""

from edgeserve.client.connect import Client, connect, is_url
from edgeserve.client.model import (
    Access,
    Answer,
    InsteadOf,
    ModelInfo,
    ModelStatus,
    Question,
    ServerInfo,
    ServerStatus,
    Statistics,
    Where,
    WorkerStatus,
)

__all__ = [
    "Access",
    "Answer",
    "Client",
    "InsteadOf",
    "ModelInfo",
    "ModelStatus",
    "Question",
    "ServerInfo",
    "ServerStatus",
    "Statistics",
    "Where",
    "WorkerStatus",
    "connect",
    "is_url",
]
