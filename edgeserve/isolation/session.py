"""A session in an isolated process: to its caller it is a session like any other."""

from __future__ import annotations

import os
import queue
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from edgeserve.bundle import VariantFiles
from edgeserve.errors import DeviceLost, DeviceUnavailable, EdgeServeError, InferenceFailed
from edgeserve.isolation.messages import (
    AskPlacement,
    Inputs,
    Message,
    Open,
    Outputs,
    OutputSegment,
    PlacementFound,
    Raised,
    Ready,
    TooLarge,
    decode,
    encode,
    pack_model,
)
from edgeserve.isolation.process import IsolatedProcess, ProcessLimits
from edgeserve.isolation.segments import (
    LEND_BYTES,
    Layout,
    Segment,
    copies,
    create,
    lay_out,
    lend,
    write,
)
from edgeserve.runtimes import LoadOptions, Placement
from edgeserve.tensors import Tensors

# Time limit of a call, as a multiple of the slowest golden run, per row.
_PATIENCE: Final = 20.0
# The first call with a new shape often compiles.
_NEW_SHAPE_PATIENCE: Final = 5.0
_TICK_US: Final = 250_000
_SPARE_TARGETS: Final = 4


def open_isolated(
    runtime: str,
    model: VariantFiles,
    device: str,
    options: LoadOptions,
    *,
    label: str,
    limits: ProcessLimits,
    faults: Sequence[str] = (),
    fault_state: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> IsolatedSession:
    """Open a variant in a process of its own.

    Raises what the runtime's `load` raises there, and DeviceUnavailable when the process dies, does
    not answer in time, or `cancelled` returns True.
    """
    process = IsolatedProcess(label, max(1, options.instances), limits, cancelled)
    wanted = Open(runtime, pack_model(model), device, options, label, tuple(faults), fault_state)
    try:
        process.control.send(encode(wanted))
        opened = _opened(process)
    except BaseException as error:
        process.close()
        if isinstance(error, OSError):
            raise DeviceUnavailable(f"{label} did not open", cause=str(error)) from None
        raise
    return IsolatedSession(process, device, opened, batched=model.interface.max_batch > 0)


def _opened(process: IsolatedProcess) -> Ready:
    limit = process.limits.open_s
    lost: DeviceLost | None = None
    try:
        data = process.receive_opening(limit)
    except TimeoutError:
        lost = process.end("hang", f"did not open it within {limit:g} s")
    else:
        if data:
            message = decode(data)
            if isinstance(message, Ready):
                return message
            if isinstance(message, Raised):
                raise message.failure.error(InferenceFailed)
        lost = process.end("crash", "")
    raise DeviceUnavailable(lost.message, cause=lost.cause, hint=lost.hint)


class IsolatedSession:
    """An open variant in an isolated process. Owns the process.

    One call runs at a time on each slot; further calls wait for a free slot. Inputs are copied once, into
    the slot's shared memory; large outputs are views on it, small ones are copied.
    """

    def __init__(
        self, process: IsolatedProcess, device: str, opened: Ready, *, batched: bool
    ) -> None:
        self.device = device
        self.inputs = opened.inputs
        self.outputs = opened.outputs
        self.concurrency = min(opened.concurrency, len(process.channels))
        self.pid = process.pid
        self._process = process
        self._pace = _Pace(process.limits, batched=batched)
        self._slots: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for channel in process.channels:
            self._slots.put(_Slot(channel, process, self._pace))
        self._count = len(process.channels)
        process.busy = lambda: not self.idle
        process.watch()

    def run(self, inputs: Tensors) -> Tensors:
        slot = self._slots.get()
        try:
            return slot.run(inputs)
        finally:
            self._slots.put(slot)

    def placement(self) -> Placement:
        slot = self._slots.get()
        try:
            return slot.placement()
        finally:
            self._slots.put(slot)

    def arm(self) -> None:
        """Enforce time limits on calls from now on, learned from the golden runs so far."""
        self._pace.arm()

    @property
    def call_limit_s(self) -> float:
        """The time limit of a call of one row, in seconds."""
        return self._pace.limit(1, 1, known=True)

    def when_lost(self, tell: Callable[[DeviceLost], None]) -> None:
        """Call `tell`, from the watching thread, if the process ends by itself or is ended for a fault."""
        self._process.on_end = tell
        if self._process.lost is not None:
            tell(self._process.lost)

    @property
    def idle(self) -> bool:
        return self._slots.qsize() == self._count

    def close(self) -> None:
        """End the process; calls in flight raise DeviceLost."""
        self._process.close()


class _Pace:
    """The time limits of calls: learned until armed, then enforced."""

    def __init__(self, limits: ProcessLimits, *, batched: bool) -> None:
        self._limits = limits
        self._batched = batched
        self._armed = False
        self._slowest = 0.0
        self._largest = 1  # elements a row
        self._calls = 0
        self._seen: set[tuple[tuple[int, ...], ...]] = set()

    def rows(self, inputs: Tensors) -> int:
        if not self._batched or not inputs:
            return 1
        return max(1, len(next(iter(inputs.values()))))

    def limit(self, rows: int, elements: int, *, known: bool) -> float:
        """Seconds for a call of `rows` rows of `elements` elements each; `known`: its shape was seen before."""
        if not self._armed:
            return self._limits.open_s
        allowed = _PATIENCE * self._slowest * rows
        limit = max(self._limits.call_s, allowed)
        if elements > self._largest:
            # Attention is quadratic in the length of a text. No call gets more time than opening.
            grown = min(self._limits.open_s, allowed * (elements / self._largest) ** 2)
            limit = max(limit, grown)
        return limit if known else max(limit, _NEW_SHAPE_PATIENCE * self._limits.call_s)

    def begin(self, inputs: Tensors) -> float:
        """The limit of a call with these inputs."""
        shapes = tuple(a.shape for a in inputs.values())
        rows = self.rows(inputs)
        return self.limit(rows, _elements(inputs) // rows, known=shapes in self._seen)

    def done(self, inputs: Tensors, seconds: float) -> None:
        if len(self._seen) < 4096:
            self._seen.add(tuple(a.shape for a in inputs.values()))
        if not self._armed:
            # The first call often compiles, so its time is not typical.
            self._calls += 1
            rows = self.rows(inputs)
            per_row = seconds / rows
            self._slowest = per_row if self._calls <= 2 else max(self._slowest, per_row)
            self._largest = max(self._largest, _elements(inputs) // rows)

    def arm(self) -> None:
        self._armed = True


def _elements(inputs: Tensors) -> int:
    return sum(a.size for a in inputs.values())


class _Slot:
    """One channel to the isolated process with the segments of its calls; used by one thread at a time."""

    def __init__(self, channel: socket.socket, process: IsolatedProcess, pace: _Pace) -> None:
        self._channel = channel
        self._process = process
        self._pace = pace
        self._source: Segment | None = None
        self._targets: deque[Segment] = deque()
        self._numbers = 0
        self._created: list[tuple[Segment, int]] = []
        self._dropped: list[int] = []
        self._answer_bytes = 1
        _receive_in_ticks(channel)

    def run(self, inputs: Tensors) -> Tensors:
        began = time.perf_counter()
        limit = self._pace.begin(inputs)
        layout = lay_out(inputs)
        source = self._source_for(layout.size)
        write(source, layout)
        target = self._target_for(self._answer_bytes)
        try:
            answer = self._exchange(self._call(layout, source, target), limit)
            if isinstance(answer, TooLarge):
                self._targets.append(target)
                target = self._new(answer.size)
                self._answer_bytes = answer.size
                answer = self._exchange(OutputSegment(target.number, target.size), limit)
            if not isinstance(answer, Outputs):
                raise InferenceFailed(
                    f"unexpected {type(answer).__name__} from an isolated process"
                )
        except EdgeServeError:
            self._targets.append(target)
            raise
        self._pace.done(inputs, time.perf_counter() - began)
        if sum(p.size for p in answer.outputs) >= LEND_BYTES:
            return lend(target, answer.outputs, self._targets)
        outputs = copies(target, answer.outputs)
        self._targets.append(target)
        return outputs

    def _call(self, layout: Layout, source: Segment, target: Segment) -> Inputs:
        created = tuple((s.number, s.size) for s, _ in self._created)
        dropped = tuple(self._dropped)
        return Inputs(layout.places, source.number, target.number, target.size, created, dropped)

    def placement(self) -> Placement:
        answer = self._exchange(AskPlacement(), self._process.limits.open_s)
        if not isinstance(answer, PlacementFound):
            raise InferenceFailed(f"unexpected {type(answer).__name__} from an isolated process")
        return answer.placement

    def _source_for(self, size: int) -> Segment:
        if self._source is None or self._source.size < size:
            if self._source is not None:
                self._dropped.append(self._source.number)
            self._source = self._new(size)
        return self._source

    def _target_for(self, size: int) -> Segment:
        while self._targets:
            segment = self._targets.popleft()
            if segment.size >= size and len(self._targets) < _SPARE_TARGETS:
                return segment
            self._dropped.append(segment.number)
        return self._new(size)

    def _new(self, size: int) -> Segment:
        self._numbers += 1
        try:
            segment, descriptor = create(self._numbers, max(1, size))
        except OSError as error:
            raise InferenceFailed(
                "cannot allocate shared memory for a call", cause=str(error)
            ) from None
        self._created.append((segment, descriptor))
        return segment

    def _exchange(self, message: Message, limit: float) -> Message:
        self._send(message)
        deadline = time.monotonic() + limit
        while True:
            try:
                data = self._channel.recv(1 << 16)
                break
            except BlockingIOError:
                if self._process.cancelled():
                    raise self._process.end("hang", "was ended: its caller gave up") from None
                if time.monotonic() > deadline:
                    what = f"did not finish a call within {limit:.3g} s"
                    raise self._process.end("hang", what) from None
            except OSError:
                data = b""
                break
        if not data:
            raise self._process.end("crash", "")
        answer = decode(data)
        if isinstance(answer, Raised):
            raise answer.failure.error(InferenceFailed)
        return answer

    def _send(self, message: Message) -> None:
        created, self._created = self._created, []
        descriptors = [d for _, d in created]
        try:
            if descriptors:
                socket.send_fds(self._channel, [encode(message)], descriptors)
            else:
                self._channel.send(encode(message))
        except OSError:
            raise self._process.end("crash", "") from None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._dropped.clear()


def _receive_in_ticks(channel: socket.socket) -> None:
    """Make `recv` raise BlockingIOError every quarter second: cheaper than a poll before each call."""
    timeval = struct.pack("ll", 0, _TICK_US)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
