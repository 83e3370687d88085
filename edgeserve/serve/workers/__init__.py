"""What one worker process knows of all of them, and how it talks to their supervisor."""

from edgeserve.serve.workers.link import LinkLost, WorkerLink
from edgeserve.serve.workers.workers import Workers

__all__ = ["LinkLost", "WorkerLink", "Workers"]
