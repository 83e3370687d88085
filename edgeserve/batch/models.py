"""What rows are asked of: a bundle on this device, or a model of a server."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from edgeserve.bundle import Bundle, Preprocess, Task
from edgeserve.bundle.manifest import encode
from edgeserve.chain import Chain, ChainOptions, Detoured
from edgeserve.chain.planning import first_candidate
from edgeserve.client import Access, Client, ModelInfo, Question, connect
from edgeserve.devices import usable_cores
from edgeserve.devices.names import device_kind
from edgeserve.errors import EnvironmentProblem, InferenceFailed
from edgeserve.postprocess import Postprocessor
from edgeserve.tensors import Interface, Tensors, join_batches

if TYPE_CHECKING:
    from collections.abc import Callable

_ACCELERATOR_CALLS: Final = 2  # one computes while the other's tensors travel
CONNECTIONS: Final = 8
# A server that is busy or gone is asked again after pauses, for so long in all.
_PATIENCE_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class RowModel(Protocol):
    """A model that answers several calls at a time. `calls` is the most at a time, `together` the most rows
    that may share a call, `identity` what a resumed run must find again."""

    interface: Interface
    preprocess: Preprocess | None
    calls: int
    identity: str

    @property
    def together(self) -> int: ...

    def ask_only(self, outputs: tuple[str, ...]) -> None:
        """From now on only these outputs are needed."""
        ...

    def postprocessor(self, preprocess: Preprocess | None) -> Postprocessor:
        """What makes answers for people, of images with this preprocessing."""
        ...

    def run(self, requests: Sequence[Tensors]) -> Tensors:
        """The outputs of requests of one row each, together. Raises InvalidInput or InferenceFailed if these
        rows are at fault, or one of them; other errors if nothing can be answered now."""
        ...

    def answered_by(self) -> str: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...


class LocalModel:
    """A bundle on this device: on a CPU as many calls at a time as there are cores, with one thread each."""

    def __init__(self, bundle: Bundle, device: str | None) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.interface = manifest.interface
        self.preprocess = manifest.task.preprocess
        self.identity = f"bundle {hashlib.sha256(encode(manifest)).hexdigest()}"
        options = ChainOptions(device=device)
        if device_kind(first_candidate(bundle, options).device) == "cpu":
            self.calls, threads = usable_cores(), 1
        else:
            self.calls, threads = _ACCELERATOR_CALLS, 0
        self._chain = Chain(
            bundle, ChainOptions(device=device, instances=self.calls, threads=threads)
        )
        # A semaphore, of which taking and giving back cost a tenth.
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.calls):
            self._turns.put(None)

    @property
    def together(self) -> int:
        return self._chain.batching.max_batch if self.interface.max_batch else 1

    def ask_only(self, outputs: tuple[str, ...]) -> None:
        """The engine computes all of them in any case."""

    def postprocessor(self, preprocess: Preprocess | None) -> Postprocessor:
        labels = {output: own.names for output, own in self.bundle.output_labels().items()}
        task = msgspec.structs.replace(self.bundle.manifest.task, preprocess=preprocess)
        return Postprocessor(task, self.interface, labels, self.bundle.labels() or ())

    def run(self, requests: Sequence[Tensors]) -> Tensors:
        joined = join_batches(list(requests))
        self._turns.get()
        try:
            if len(requests) == 1:
                return self._chain.run(joined)[0]
            return self._chain.run_batch(joined, requests)[0]
        except Detoured:
            raise InferenceFailed("the process that ran these rows together ended") from None
        finally:
            self._turns.put(None)

    def answered_by(self) -> str:
        candidate = self._chain.candidate
        return f"{self.bundle.name} on {candidate.device}, {candidate.runtime}, {candidate.variant}"

    def close(self) -> None:
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class RemoteModel:
    """A model of a server, over several connections."""

    def __init__(
        self, url: str, access: Access, info: ModelInfo, version: str | None, connections: int
    ) -> None:
        self.info = info
        self.interface = info.interface
        self.preprocess = info.preprocess
        self.calls = connections
        self.identity = f"server {url} model {info.name} version {version or 'newest'}"
        self._version = version
        self._name = info.name
        self._where = ""
        self._outputs: tuple[str, ...] = ()
        self._closed = threading.Event()
        self._open = ExitStack()
        self._idle: queue.LifoQueue[Client] = queue.LifoQueue()
        for _ in range(connections):
            self._idle.put(self._open.enter_context(connect(url, access)))

    @property
    def together(self) -> int:
        told = self.info.independent_rows
        return max(1, self.interface.max_batch if told is None else told)

    def ask_only(self, outputs: tuple[str, ...]) -> None:
        self._outputs = outputs

    def postprocessor(self, preprocess: Preprocess | None) -> Postprocessor:
        task = Task("generic", preprocess, postprocess=self.info.postprocess)
        return Postprocessor(task, self.interface, self.info.labels, self.info.class_names)

    def run(self, requests: Sequence[Tensors]) -> Tensors:
        question = Question(join_batches(list(requests)), self._outputs)
        client = self._idle.get()
        try:
            return self._patiently(lambda: self._ask(client, question))
        finally:
            self._idle.put(client)

    def _ask(self, client: Client, question: Question) -> Tensors:
        answer = client.infer(self._name, question, self._version)
        where = answer.where
        by = ", ".join(filter(None, (where.device, where.runtime, where.variant)))
        version = f" version {answer.version}" if answer.version else ""
        self._where = f"{self._name}{version}" + (f" on {by}" if by else "")
        return answer.outputs

    def _patiently(self, ask: Callable[[], Tensors]) -> Tensors:
        """Ask again while the server is busy or cannot be reached."""
        pause, until = _FIRST_PAUSE_S, time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask()
            except InferenceFailed:
                raise
            except EnvironmentProblem:
                if time.monotonic() + pause > until or self._closed.wait(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def answered_by(self) -> str:
        return self._where or self._name

    def close(self) -> None:
        self._closed.set()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
