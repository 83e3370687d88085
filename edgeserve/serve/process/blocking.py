"""Blocking work on daemon threads of its own: an engine that opens a device cannot be interrupted, and must
not keep the server from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import TypeVar

from edgeserve.errors import ModelUnavailable

_T = TypeVar("_T")
_running: set[threading.Thread] = set()


def is_busy() -> bool:
    """Whether any such work still runs in this process."""
    return any(thread.is_alive() for thread in list(_running))


async def apart(
    work: Callable[[], _T],
    discard: Callable[[_T], object] = lambda _: None,
    name: str = "edgeserve-opening",
) -> _T:
    """What `work` returns or raises. If the caller is cancelled meanwhile, the thread goes on alone and gives
    its result to `discard`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()
    lock = threading.Lock()
    left = False

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type] # None is what the work returned

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:  # noqa: BLE001 - raised where the work was asked for
            error = caught
        with lock:
            alone = left
            if not alone:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(settle, result, error)
        _running.discard(threading.current_thread())
        if alone and error is None:
            discard(result)  # type: ignore[arg-type] # as above

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running.add(thread)
    thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        with lock:
            left = True
        done.add_done_callback(lambda _: _drop(done, discard))
        raise


def _drop(done: asyncio.Future[_T], discard: Callable[[_T], object]) -> None:
    """For a result that came between the cancellation and its delivery."""
    if not done.cancelled() and done.exception() is None:
        threading.Thread(target=discard, args=(done.result(),), daemon=True).start()


async def unless(event: asyncio.Event, work: Coroutine[object, None, _T]) -> _T:
    """What `work` gives, unless `event` comes first: an engine may take minutes to open, and cannot be
    interrupted. Then raises ModelUnavailable."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ModelUnavailable("the model is not loaded", cause="the server ends")
        return task.result()
    finally:
        waiting.cancel()
        task.cancel()
