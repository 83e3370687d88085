"""The isolated process: opens one model and runs it for its owner until the owner closes the channels.

    python -m edgeserve.isolation OWNER CONTROL SLOT[,SLOT...] MEMORY

OWNER is the owner's process id, CONTROL and SLOT are file descriptors of sockets, MEMORY is the memory cap
in bytes (0: no cap).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any, Final

from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.isolation.messages import (
    AskPlacement,
    Close,
    Inputs,
    Message,
    Open,
    Outputs,
    OutputSegment,
    Ping,
    PlacementFound,
    Ready,
    TooLarge,
    decode,
    encode,
    raised,
    receive,
    unpack_model,
)
from edgeserve.isolation.segments import Layout, Segment, attach, lay_out, views, write
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors

_PR_SET_PDEATHSIG: Final = 1
_OPEN_BYTES: Final = 1 << 20


def main(arguments: list[str]) -> None:
    owner, control, slots, memory = arguments
    _end_with(int(owner))
    # Both are meant for the owner, which then closes us: dying before it asks would count as a failure.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if int(memory):
        _limit_memory(int(memory))
    channel = socket.socket(fileno=int(control))
    data, _ = receive(channel, _OPEN_BYTES)
    wanted = decode(data) if data else None
    if not isinstance(wanted, Open):
        os._exit(2)
    control_channel = _Control(channel)
    threading.Thread(target=control_channel.answer_pings, daemon=True).start()
    try:
        session = open_session(wanted)
    except Exception as error:  # noqa: BLE001 - sent to the owner
        channel.send(encode(raised(error)))
        os._exit(1)
    control_channel.session = session
    channels = [socket.socket(fileno=int(slot)) for slot in slots.split(",")]
    for other in channels[1:]:
        threading.Thread(target=_Slot(session, other).serve, daemon=True).start()
    channel.send(encode(Ready(session.inputs, session.outputs, session.concurrency)))
    _Slot(session, channels[0]).serve()
    threading.Event().wait()  # the control thread ends the process


def open_session(wanted: Open) -> Session:
    from edgeserve.runtimes import runtime
    from edgeserve.runtimes.inject import Faults

    model = unpack_model(wanted.model)
    if not wanted.faults:
        return runtime(wanted.runtime).load(model, wanted.device, wanted.options)
    faults = Faults.parse(wanted.faults, wanted.fault_state)
    return faults.load(runtime(wanted.runtime), model, wanted.device, wanted.options, wanted.label)


def _end_with(owner: int) -> None:
    """Have the kernel kill this process when its owner ends, for whatever reason."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(1)


def _limit_memory(limit: int) -> None:
    """Make allocations beyond the cap fail, with the engine's message. RLIMIT_AS would also count address
    space that drivers reserve and never use."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )


class _Control:
    """The control channel: answers pings, ends the process when it is closed."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.session: Session | None = None

    def answer_pings(self) -> None:
        while True:
            data = b""
            with contextlib.suppress(OSError):
                data, _ = receive(self._channel)
            message = decode(data) if data else None
            if isinstance(message, Ping):
                with contextlib.suppress(OSError):
                    self._channel.send(data)
            else:
                if isinstance(message, Close) and self.session is not None:
                    with contextlib.suppress(Exception):
                        self.session.close()
                # Not sys.exit: it would run a driver's exit handlers and wait for its threads.
                os._exit(0)


class _Slot:
    """One call at a time, on a thread of its own, over one channel and its segments."""

    def __init__(self, session: Session, channel: socket.socket) -> None:
        self._session = session
        self._channel = channel
        self._segments: dict[int, Segment] = {}

    def serve(self) -> None:
        while True:
            data, descriptors = receive(self._channel)
            if not data:
                return
            try:
                answer = self._answer(decode(data), descriptors)
            except Exception as error:  # noqa: BLE001 - sent to the owner
                answer = raised(error)
            self._channel.send(encode(answer))

    def _answer(self, message: Message, descriptors: list[int]) -> Message:
        if isinstance(message, AskPlacement):
            return PlacementFound(self._session.placement())
        if not isinstance(message, Inputs):
            return raised(InferenceFailed(f"unexpected {type(message).__name__}"))
        for number in message.dropped:
            self._segments.pop(number, None)
        for (number, size), descriptor in zip(message.created, descriptors, strict=True):
            self._segments[number] = attach(number, size, descriptor)
        inputs = views(self._segments[message.source].memory, message.inputs)
        layout = lay_out(self._run(inputs))
        target = self._segments.get(message.target)
        if layout.size > message.room or target is None:
            target = self._grown(layout)
        write(target, layout)
        return Outputs(layout.places)

    def _run(self, inputs: Tensors) -> Tensors:
        return self._session.run(inputs)

    def _grown(self, layout: Layout) -> Segment:
        self._channel.send(encode(TooLarge(layout.size)))
        data, descriptors = receive(self._channel)
        message: Any = decode(data) if data else None
        if not isinstance(message, OutputSegment):
            raise EdgeServeError("no segment for the outputs")
        segment = attach(message.number, message.size, descriptors[0])
        self._segments[message.number] = segment
        return segment


if __name__ == "__main__":
    main(sys.argv[1:])
