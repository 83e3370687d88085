"""A session in another process, which looks like any session to its caller."""

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
    Answer,
    AskPlacement,
    Call,
    Failed,
    Message,
    Open,
    Opened,
    Placed,
    Target,
    TooLarge,
    decode,
    encode,
    error_of,
    pack_model,
)
from edgeserve.isolation.process import Limits, WorkerProcess
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

# A call may take that many times what the slowest golden run took, row for row.
_PATIENCE: Final = 20.0
# Shapes not seen before are often compiled for first.
_NEW_SHAPE_PATIENCE: Final = 5.0
_TICK_US: Final = 250_000
_SPARE_TARGETS: Final = 4


def open_worker(
    runtime: str,
    model: VariantFiles,
    device: str,
    options: LoadOptions,
    *,
    label: str,
    limits: Limits,
    faults: Sequence[str] = (),
    fault_state: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> WorkerSession:
    """Open a variant in a process of its own.

    Raises what the runtime's `load` raises there, and DeviceUnavailable when the process dies, does
    not answer in time, or `cancelled` says that nobody waits any more.
    """
    process = WorkerProcess(label, max(1, options.instances), limits, cancelled)
    wanted = Open(runtime, pack_model(model), device, options, label, tuple(faults), fault_state)
    try:
        process.control.send(encode(wanted))
        opened = _opened(process)
    except BaseException as error:
        process.close()
        if isinstance(error, OSError):
            raise DeviceUnavailable(f"{label} did not open", cause=str(error)) from None
        raise
    return WorkerSession(process, device, opened, batched=model.interface.max_batch > 0)


def _opened(process: WorkerProcess) -> Opened:
    limit = process.limits.open_s
    lost: DeviceLost | None = None
    try:
        data = process.receive_opening(limit)
    except TimeoutError:
        lost = process.end("hang", f"did not open it within {limit:g} s")
    else:
        if data:
            message = decode(data)
            if isinstance(message, Opened):
                return message
            if isinstance(message, Failed):
                raise error_of(message)
        lost = process.end("crash", "")
    raise DeviceUnavailable(lost.message, cause=lost.cause, hint=lost.hint)


class WorkerSession:
    """An opened variant in a worker process. Owns the process.

    As many calls run at once as there are slots; further ones wait for one. Inputs are copied once, into
    the slot's shared memory; large outputs are lent from it, small ones copied.
    """

    def __init__(
        self, process: WorkerProcess, device: str, opened: Opened, *, batched: bool
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
        """The golden run is over: from now on calls are held to what it took."""
        self._pace.arm()

    @property
    def call_limit_s(self) -> float:
        """What a call of one row may take now, in seconds."""
        return self._pace.limit(1, 1, known=True)

    def when_lost(self, tell: Callable[[DeviceLost], None]) -> None:
        """Have `tell` called, from the warden's thread, if the process ends by itself or is given up."""
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
    """How long calls may take: learned until armed, then enforced."""

    def __init__(self, limits: Limits, *, batched: bool) -> None:
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
        """For so many rows, of so many elements each."""
        if not self._armed:
            return self._limits.open_s
        allowed = _PATIENCE * self._slowest * rows
        limit = max(self._limits.call_s, allowed)
        if elements > self._largest:
            # Attention takes the square of a longer text's length; no call gets more than opening does.
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
            # The first call often compiles: it tells little about the others.
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
    """One channel to the worker with the segments of its calls; used by one thread at a time."""

    def __init__(self, channel: socket.socket, process: WorkerProcess, pace: _Pace) -> None:
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
                answer = self._exchange(Target(target.number, target.size), limit)
            if not isinstance(answer, Answer):
                raise InferenceFailed(f"unexpected {type(answer).__name__} from a worker")
        except EdgeServeError:
            self._targets.append(target)
            raise
        self._pace.done(inputs, time.perf_counter() - began)
        if sum(p.size for p in answer.outputs) >= LEND_BYTES:
            return lend(target, answer.outputs, self._targets)
        outputs = copies(target, answer.outputs)
        self._targets.append(target)
        return outputs

    def _call(self, layout: Layout, source: Segment, target: Segment) -> Call:
        created = tuple((s.number, s.size) for s, _ in self._created)
        dropped = tuple(self._dropped)
        return Call(layout.places, source.number, target.number, target.size, created, dropped)

    def placement(self) -> Placement:
        answer = self._exchange(AskPlacement(), self._process.limits.open_s)
        if not isinstance(answer, Placed):
            raise InferenceFailed(f"unexpected {type(answer).__name__} from a worker")
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
            raise InferenceFailed("no shared memory for a call", cause=str(error)) from None
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
                    raise self._process.end("hang", "was not waited for") from None
                if time.monotonic() > deadline:
                    what = f"did not finish a call within {limit:.3g} s"
                    raise self._process.end("hang", what) from None
            except OSError:
                data = b""
                break
        if not data:
            raise self._process.end("crash", "")
        answer = decode(data)
        if isinstance(answer, Failed):
            raise error_of(answer)
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
    """Have `recv` wake with BlockingIOError now and then: cheaper than a poll before each."""
    timeval = struct.pack("ll", 0, _TICK_US)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
