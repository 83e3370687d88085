"""Requests and answers between two processes: in any order, errors as they were, ends that are noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edgeserve.errors import DeviceLost, EdgeServeError, InvalidInput, ModelNotFound
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.shm import SharedMemoryOff
from edgeserve.serve.workers.inherited import Listener, Plane
from edgeserve.serve.workers.link import (
    Handle,
    LinkLost,
    NoAnswer,
    WorkerLink,
    receive_order,
    send_order,
)
from edgeserve.serve.workers.messages import (
    Journal,
    Load,
    Order,
    Prepare,
    Request,
    TellStatus,
    Unload,
)


@asynccontextmanager
async def linked(handle: Handle) -> AsyncIterator[tuple[WorkerLink, WorkerLink]]:
    """Two ends; the second answers."""
    one, other = socket.socketpair()

    async def silent(request: Request) -> object:
        raise AssertionError(request)

    ends = await WorkerLink.over(one, silent), await WorkerLink.over(other, handle)
    try:
        yield ends
    finally:
        for end in ends:
            await end.close()


def test_answers_find_their_questions_whatever_the_order() -> None:
    async def handle(request: Request) -> object:
        assert isinstance(request, Load)
        await asyncio.sleep(0.02 if request.name == "0" else 0)
        return request.name * 2

    async def main() -> list[str]:
        async with linked(handle) as (asking, _):
            return await asyncio.gather(*(asking.ask(Load(str(n)), str, 5) for n in range(20)))

    assert asyncio.run(main()) == [str(n) * 2 for n in range(20)]


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound("unknown"),
        InvalidInput("wrong", cause="why", hint="do"),
        SharedMemoryOff(),
        DeviceLost("gone", cause="crash"),
    ],
)
def test_errors_arrive_as_they_were(error: EdgeServeError) -> None:
    async def handle(request: Request) -> object:
        raise error

    async def main() -> None:
        async with linked(handle) as (asking, _):
            with pytest.raises(type(error)) as caught:
                await asking.ask(TellStatus(), int, 5)
        told = caught.value
        assert (told.message, told.cause, told.hint) == (error.message, error.cause, error.hint)

    asyncio.run(main())


def test_an_unforeseen_error_is_no_silence() -> None:
    async def handle(request: Request) -> object:
        raise ZeroDivisionError

    async def main() -> None:
        async with linked(handle) as (asking, _):
            with pytest.raises(EdgeServeError, match="the server failed: ZeroDivisionError"):
                await asking.ask(TellStatus(), int, 5)

    asyncio.run(main())


def test_who_does_not_answer_or_ends_is_told_apart() -> None:
    async def handle(request: Request) -> object:
        await asyncio.sleep(30)
        return None

    async def main() -> None:
        async with linked(handle) as (asking, answering):
            with pytest.raises(NoAnswer):
                await asking.ask(Unload("m"), type(None), 0.05)
            waiting = asyncio.ensure_future(asking.ask(Prepare(("m", "1")), type(None), 30))
            await asyncio.sleep(0.05)
            await answering.close()
            with pytest.raises(LinkLost):
                await waiting
            with pytest.raises(LinkLost):
                await asking.ask(TellStatus(), int, 5)
            asking.tell(TellStatus())  # nobody minds

    asyncio.run(main())


def test_an_order_travels_whole() -> None:
    one, other = socket.socketpair()
    with one, other:
        settings = Settings(bundle="m.edge", workers=2, bundles=("a", "b"))
        journal = Journal(settings, 3, {"x": "why"}, ("y",))
        order = Order(2, journal, 20, (Listener(Plane.CONTROL, 7),), 8)
        send_order(one, order)
        assert receive_order(other) == order
        one.close()
        with pytest.raises(LinkLost):
            receive_order(other)
