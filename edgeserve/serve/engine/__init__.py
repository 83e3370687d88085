"""Running requests: queues, batches, deadlines. Knows nothing of protocols."""

from edgeserve.serve.engine.batcher import Engine, EngineSettings
from edgeserve.serve.engine.request import (
    BatchTimes,
    DeadlineExceeded,
    Done,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)

__all__ = [
    "BatchTimes",
    "DeadlineExceeded",
    "Done",
    "Engine",
    "EngineSettings",
    "Outcome",
    "Pending",
    "QueueFull",
    "ShuttingDown",
]
