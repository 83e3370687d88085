"""Sessions in a process of their own: a driver that crashes or hangs ends only that process."""

from edgeserve.isolation.process import ProcessLimits
from edgeserve.isolation.session import IsolatedSession, open_isolated

__all__ = ["IsolatedSession", "ProcessLimits", "open_isolated"]
