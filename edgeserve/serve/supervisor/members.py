"""The current worker processes, and how to ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from edgeserve.errors import EdgeServeError
from edgeserve.serve.workers import WorkerLink
from edgeserve.serve.workers.messages import Report, Request

_T = TypeVar("_T")


class Member:
    """One worker process. `started` is its report once it listens, or its error."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: WorkerLink | None = None
        self.serves = False
        self.listens = False
        self.silent = False  # when it was last asked how it is
        self.report: Report | None = None
        self.started: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.joining = False
        self.heard = 0.0  # monotonic, when it last said how it is


class Members(dict[int, Member]):
    """By their numbers, from 1."""

    def has(self, member: Member) -> bool:
        """Whether this process is still the worker of its number."""
        return self.get(member.number) is member

    async def ask(
        self, request: Request, kind: type[_T], limit_s: float, numbers: Iterable[int] | None = None
    ) -> tuple[dict[int, _T], dict[int, EdgeServeError]]:
        """Ask all workers that serve (or these) at once: answers and errors by their numbers."""
        chosen = [m for m in self.values() if m.serves and (numbers is None or m.number in numbers)]

        async def one(member: Member) -> _T | EdgeServeError:
            assert member.link is not None
            try:
                return await member.link.ask(request, kind, limit_s)
            except EdgeServeError as error:
                return error

        got = await asyncio.gather(*(one(m) for m in chosen))
        pairs = list(zip((m.number for m in chosen), got, strict=True))
        return (
            {n: answer for n, answer in pairs if not isinstance(answer, EdgeServeError)},
            {n: answer for n, answer in pairs if isinstance(answer, EdgeServeError)},
        )
