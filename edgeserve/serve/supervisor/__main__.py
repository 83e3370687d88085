"""One worker process, started by the supervisor.

    python -m edgeserve.serve.supervisor DESCRIPTOR

DESCRIPTOR is the worker's end of its link: the order comes first, and its end is the supervisor's end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from functools import partial

import msgspec

from edgeserve.devices import usable_cores
from edgeserve.errors import EdgeServeError
from edgeserve.serve.app import Service, end_soon, event_loop, settle, start_unless_stopped
from edgeserve.serve.process import logs
from edgeserve.serve.process.heap import few_arenas
from edgeserve.serve.process.log_writer import write_on_a_thread
from edgeserve.serve.process.signals import Stop, on_hangup
from edgeserve.serve.workers import WorkerLink, Workers
from edgeserve.serve.workers.inherited import Inherited
from edgeserve.serve.workers.link import receive_order
from edgeserve.serve.workers.messages import Failed, Order, Request, Serving
from edgeserve.wire.failures import Failure


def main() -> int:
    end = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(end.fileno(), False)
    order = receive_order(end)
    logging.basicConfig(
        level=order.verbosity, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    few_arenas(max(2, usable_cores()))
    settings = order.journal.settings
    few_arenas(max(2, usable_cores() // settings.workers))
    write_on_a_thread()
    logs.set_up(settings.log_format, access=settings.access_log)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(_serve(order, end))


async def _serve(order: Order, end: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stop = Stop()
    link = await WorkerLink.over(end, _nothing_yet)
    link.reading.add_done_callback(lambda _: stop.ask())
    try:
        settings = order.journal.settings
        inherited = Inherited(order.listeners, order.pool)
        control = partial(Workers, link, order.journal)
        async with Service(settings, loop, control=control, inherited=inherited) as service:
            on_hangup(service.hang_up)
            started = await start_unless_stopped(service, stop)
            link.tell(Serving(msgspec.msgpack.encode(started)))
            settle()
            await stop.wait()
            code = 0 if await service.drain() else 1
            end_soon(code)
            return code
    except EdgeServeError as error:
        link.tell(Failed(Failure.of(error)))
        return error.exit_code
    finally:
        await link.close()


async def _nothing_yet(request: Request) -> object:
    raise EdgeServeError(f"{type(request).__name__} came before the worker was ready for it")


if __name__ == "__main__":
    sys.exit(main())
