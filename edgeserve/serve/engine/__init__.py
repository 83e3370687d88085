"""Running requests: queues, batches, deadlines, turns. Knows nothing of protocols."""

from edgeserve.serve.engine.batcher import Engine, EngineSettings, OnFull, time_limit
from edgeserve.serve.engine.cache import ResponseCache
from edgeserve.serve.engine.mailbox import Mailbox
from edgeserve.serve.engine.queue import BatchPolicy, RequestQueue
from edgeserve.serve.engine.request import (
    UNCOUNTED,
    BatchTimes,
    DeadlineExceeded,
    Done,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.serve.engine.turns import Turns

__all__ = [
    "UNCOUNTED",
    "BatchPolicy",
    "BatchTimes",
    "DeadlineExceeded",
    "Done",
    "Engine",
    "EngineSettings",
    "Mailbox",
    "OnFull",
    "Outcome",
    "Pending",
    "QueueFull",
    "RequestQueue",
    "ResponseCache",
    "ShuttingDown",
    "Turns",
    "time_limit",
]
