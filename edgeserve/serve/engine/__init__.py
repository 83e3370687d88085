"""Running requests: queues, batches, deadlines, turns. Knows nothing of protocols."""

from edgeserve.serve.engine.batcher import Engine
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
from edgeserve.serve.engine.scheduling import Turns
from edgeserve.serve.engine.settings import (
    EngineSettings,
    LevelSettings,
    set_clock,
    time_limit,
)

__all__ = [
    "UNCOUNTED",
    "BatchPolicy",
    "BatchTimes",
    "DeadlineExceeded",
    "Done",
    "Engine",
    "EngineSettings",
    "LevelSettings",
    "Mailbox",
    "Outcome",
    "Pending",
    "QueueFull",
    "RequestQueue",
    "ResponseCache",
    "ShuttingDown",
    "Turns",
    "set_clock",
    "time_limit",
]
