"""What threads post is called on the event loop, in order, whatever closes when."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from edgeserve.serve.engine import mailbox
from edgeserve.serve.engine.mailbox import Mailbox

PER_THREAD = 500


def new_loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    if sys.platform == "win32":
        return [asyncio.new_event_loop]
    import uvloop

    return [asyncio.new_event_loop, uvloop.new_event_loop]


async def all_delivered(letters: list[tuple[int, int]], threads: int) -> None:
    async with asyncio.timeout(20):
        while len(letters) < threads * PER_THREAD:  # noqa: ASYNC110 - an event would change what is tested
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("new_loop", new_loops())
@pytest.mark.parametrize("eventfd", [True, False])
def test_each_thread_s_letters_come_once_and_in_order(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    eventfd: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "_HAS_EVENTFD", eventfd and hasattr(os, "eventfd"))
    letters: list[tuple[int, int]] = []
    on_loop: set[int] = set()

    async def main() -> None:
        box = Mailbox(asyncio.get_running_loop())

        def got(thread: int, number: int) -> None:
            letters.append((thread, number))
            on_loop.add(threading.get_ident())

        def send(thread: int) -> None:
            for number in range(PER_THREAD):
                box.post(got, thread, number)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        await all_delivered(letters, 4)
        for thread in threads:
            thread.join()
        box.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert on_loop == {threading.get_ident()}
    for thread in range(4):
        own = [number for sender, number in letters if sender == thread]
        assert own == list(range(PER_THREAD))


def test_what_fails_keeps_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []

    def fails() -> None:
        raise RuntimeError("this one")

    async def main() -> None:
        box = Mailbox(asyncio.get_running_loop())
        box.post(got.append, 1)
        box.post(fails)
        box.post(got.append, 2)
        box.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert got == [1, 2]
    assert "this one" in caplog.text


def test_letters_to_a_closed_mailbox_still_come() -> None:
    got: list[int] = []

    async def main() -> None:
        box = Mailbox(asyncio.get_running_loop())
        box.close()
        await asyncio.sleep(0)
        box.post(got.append, 1)
        await asyncio.sleep(0.01)
        box.close()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert got == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_descriptors_are_given_back() -> None:
    process = psutil.Process()

    async def main() -> int:
        before = process.num_fds()
        boxes = [Mailbox(asyncio.get_running_loop()) for _ in range(20)]
        await asyncio.sleep(0.01)
        for box in boxes:
            box.close()
        await asyncio.sleep(0.01)
        return process.num_fds() - before

    assert asyncio.run(main()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_a_loop_that_has_ended_needs_no_goodbye() -> None:
    process = psutil.Process()
    before = process.num_fds()
    loop = asyncio.new_event_loop()
    box = Mailbox(loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    box.close()
    assert process.num_fds() == before
