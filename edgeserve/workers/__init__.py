"""Sessions in a process of their own: a driver that crashes or hangs takes only that process with it."""

from edgeserve.workers.process import Limits
from edgeserve.workers.session import WorkerSession, open_worker

__all__ = ["Limits", "WorkerSession", "open_worker"]
