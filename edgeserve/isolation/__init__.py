"""Sessions in a process of their own: a driver that crashes or hangs takes only that process with it."""

from edgeserve.isolation.process import Limits
from edgeserve.isolation.session import WorkerSession, open_worker

__all__ = ["Limits", "WorkerSession", "open_worker"]
