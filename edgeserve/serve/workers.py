"""Several server processes on one port, for models so small that one event loop is what limits them.

The first process only supervises: it starts the workers, has those that die started again, and passes
signals on. The kernel spreads connections over the workers (SO_REUSEPORT).
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Final

import msgspec

from edgeserve import errors
from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.serve.app import Started, WorkerPlace, run_worker
from edgeserve.serve.settings import Settings, SettingsSource

log = logging.getLogger(__name__)

_CODE: Final = "from edgeserve.serve.workers import worker; worker()"
# A worker that dies sooner than that after its start is started again only after as long.
_PAUSE_S: Final = 1.0


class Order(msgspec.Struct, frozen=True):
    """What a worker is told, on its standard input."""

    settings: Settings
    source: SettingsSource
    metrics: str
    verbosity: int


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says once, on its standard output: that it serves, or why it does not."""

    started: Started | None = None
    error: str = ""
    message: str = ""
    cause: str | None = None
    hint: str | None = None


def serve_in_processes(
    settings: Settings, source: SettingsSource, on_start: Callable[[Started], None]
) -> bool:
    """Serve until SIGTERM or SIGINT, then have every worker drain. False when one had to give up requests.

    Raises what the first worker's start raises.
    """
    with _Reserved(settings) as reserved:
        supervisor = _Supervisor(reserved.settings, source)
        try:
            return supervisor.run(on_start)
        finally:
            supervisor.close()


class _Reserved:
    """The port that the workers share, taken before the first of them listens."""

    def __init__(self, settings: Settings) -> None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if settings.http_port == 0:
                self._socket.bind((settings.host, 0))
                port = int(self._socket.getsockname()[1])
                settings = msgspec.structs.replace(settings, http_port=port)
            else:
                self._refuse_others(settings)
        except OSError as error:
            self._socket.close()
            raise EnvironmentProblem(
                f"cannot listen on {settings.host}:{settings.http_port}", cause=str(error)
            ) from None
        self.settings = settings

    def _refuse_others(self, settings: Settings) -> None:
        """Raise OSError when somebody listens there already: sharing is for our own workers."""
        with socket.socket(self._socket.family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.http_port))

    def __enter__(self) -> _Reserved:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


class _Supervisor:
    """Owns the worker processes and the folder that their metrics meet in."""

    def __init__(self, settings: Settings, source: SettingsSource) -> None:
        self._metrics = tempfile.mkdtemp(prefix="edgeserve-metrics-")
        level = logging.getLogger().getEffectiveLevel()
        self._order = msgspec.json.encode(Order(settings, source, self._metrics, level))
        self._count = settings.workers
        self._workers: list[subprocess.Popen[bytes]] = []
        self._began: dict[int, float] = {}
        self._ending = False
        self._clean = True
        self._last_given = settings.drain_timeout + 10.0

    def run(self, on_start: Callable[[Started], None]) -> bool:
        signals, wake = socket.socketpair()
        wake.setblocking(False)
        before = {n: signal.getsignal(n) for n in _SIGNALS}
        kept = signal.set_wakeup_fd(wake.fileno())
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        try:
            started = _started(self._start())
            for worker in [self._start() for _ in range(self._count - 1)]:
                _started(worker)
            on_start(started)
            self._watch(signals)
        finally:
            signal.set_wakeup_fd(kept)
            for number, handler in before.items():
                signal.signal(number, handler)
            signals.close()
            wake.close()
        return self._clean

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which passes it on
        )
        self._workers.append(worker)
        self._began[worker.pid] = time.monotonic()
        _input(worker).write(self._order + b"\n")
        _input(worker).flush()
        return worker

    def _watch(self, signals: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(signals, selectors.EVENT_READ)
            while self._workers:
                if selector.select(timeout=0.5):
                    for number in signals.recv(64):
                        self._pass_on(number)
                self._bury()

    def _pass_on(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._ending = True
            number = signal.SIGTERM
        elif number != signal.SIGHUP:
            return
        for worker in self._workers:
            worker.send_signal(number)

    def _bury(self) -> None:
        """Take note of workers that have ended; start others in their place unless the server ends."""
        for worker in list(self._workers):
            code = worker.poll()
            if code is None:
                continue
            _close(worker)
            self._workers.remove(worker)
            if self._ending:
                self._clean = self._clean and code == 0
                continue
            log.error("a worker ended with %d; another one is started", code)
            lived = time.monotonic() - self._began.pop(worker.pid)
            time.sleep(max(0.0, _PAUSE_S - lived))
            self._start()

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        end = time.monotonic() + self._last_given
        for worker in self._workers:
            try:
                worker.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _close(worker)
        shutil.rmtree(self._metrics, ignore_errors=True)


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def _input(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    assert worker.stdin is not None
    return worker.stdin


def _close(worker: subprocess.Popen[bytes]) -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()


def _started(worker: subprocess.Popen[bytes]) -> Started:
    """What a worker says of its start. Raises the error it names."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise EnvironmentProblem("a worker ended while it started", hint="run it with --workers 1")
    report = msgspec.json.decode(line, type=Report)
    if report.started is not None:
        return report.started
    kind = getattr(errors, report.error, EnvironmentProblem)
    if kind is errors.DependencyMissing:
        kind = EnvironmentProblem
    error: EdgeServeError = kind(report.message, cause=report.cause, hint=report.hint)
    raise error


def worker() -> None:
    """The main function of a worker process."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    logging.basicConfig(
        level=order.verbosity, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )

    def say(report: Report) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()

    try:
        done = run_worker(
            order.settings,
            lambda started: say(Report(started)),
            order.source.read,
            WorkerPlace(order.metrics, sys.stdin.fileno()),
        )
    except EdgeServeError as error:
        say(Report(None, type(error).__name__, error.message, error.cause, error.hint))
        os._exit(error.exit_code)
    sys.exit(0 if done else 1)
