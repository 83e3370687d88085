"""How many requests a server has begun and not answered, over all its models and protocols."""

from __future__ import annotations

from edgeserve.errors import EnvironmentProblem


class TooManyInFlight(EnvironmentProblem):
    """The server handles as many requests as it may at one time."""


class TooManyBodies(EnvironmentProblem):
    """What is held of requests takes as much memory as it may."""


class InFlight:
    """Counts requests that wait for something: a thread, a queue, the model. Those answered at once, on
    the event loop, are never two at a time. Lives on the event loop; whoever enters leaves."""

    __slots__ = ("count", "limit")

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.limit = limit

    def refusal(self) -> TooManyInFlight:
        """What a request is told that comes while `count` is at `limit`."""
        return TooManyInFlight(
            f"{self.count} requests are being handled already",
            hint="try again later, or raise limits.in_flight",
        )
