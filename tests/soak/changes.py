"""What happens to a server while it serves: models are loaded again, come and go; gRPC calls beside HTTP."""

from __future__ import annotations

import signal
import threading
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from edgeserve.client import Question, connect
from edgeserve.errors import EdgeServeError
from tests.bundles import linear
from tests.conformance.process import Served

CALL_S: Final = 0.02


class _Thread(ABC):
    """Does something again and again until it is stopped; use it with `with`."""

    def __init__(self, pause_s: float) -> None:
        self.done = 0
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            self._once()
            self.done += 1

    @abstractmethod
    def _once(self) -> None: ...


class Reloads(_Thread):
    """In turns: the model that is being asked is loaded again; the spare one is unloaded and loaded; its
    bundle leaves the folder and comes back, with SIGHUP."""

    def __init__(self, served: Served, spare: Path, pause_s: float) -> None:
        super().__init__(pause_s)
        self.failed = 0
        self._served = served
        self._spare, self._aside = spare, spare.with_name("aside")
        self._steps = cycle(
            [
                self._posts("linear", "load"),
                self._posts("cnn", "load"),
                self._posts("spare", "unload"),
                self._posts("spare", "load"),
                self._leaves,
                self._returns,
            ]
        )

    def _once(self) -> None:
        next(self._steps)()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._aside.exists():
            self._returns()

    def _posts(self, model: str, what: str) -> Callable[[], None]:
        url = f"{self._served.url}/v2/repository/models/{model}/{what}"

        def post() -> None:
            try:
                with urllib.request.urlopen(url, b"{}", timeout=30):
                    pass
            except urllib.error.URLError as error:
                print(f"{what} {model}: {error}")
                self.failed += 1

        return post

    def _leaves(self) -> None:
        self._spare.rename(self._aside)
        self._served.popen.send_signal(signal.SIGHUP)

    def _returns(self) -> None:
        self._aside.rename(self._spare)
        self._served.popen.send_signal(signal.SIGHUP)


class Calls(_Thread):
    """A gRPC client that checks its answers; every tenth call has a connection of its own."""

    def __init__(self, address: str) -> None:
        super().__init__(CALL_S)
        self.wrong = 0
        self._url = f"grpc://{address}"
        self._client = connect(self._url)
        self._random = np.random.default_rng(0)

    def _once(self) -> None:
        if self.done % 10 == 9:
            self._client.close()
            self._client = connect(self._url)
        x = self._random.normal(size=(2, 4)).astype(np.float32)
        try:
            got = self._client.infer("linear", Question({"x": x})).outputs["y"]
        except EdgeServeError as error:
            print(f"gRPC: {error}")
            self.wrong += 1
        else:
            self.wrong += not np.allclose(got, linear(x), rtol=1e-4)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._client.close()
