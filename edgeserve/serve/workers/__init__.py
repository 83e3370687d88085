"""Worker processes that serve as one: what they tell each other, through the process that supervises them."""

from edgeserve.serve.workers.link import LinkLost, WorkerLink
from edgeserve.serve.workers.workers import Workers

__all__ = ["LinkLost", "WorkerLink", "Workers"]
