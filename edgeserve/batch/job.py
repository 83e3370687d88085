"""A run over all rows of a source: read, run on all cores, written in order, resumable at any moment."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from edgeserve.batch import progress_file
from edgeserve.batch.answers import ResultForm
from edgeserve.batch.models import RowModel
from edgeserve.batch.pace import RowPace
from edgeserve.batch.progress_file import RunProgress, progress_path
from edgeserve.batch.rows import Portion
from edgeserve.batch.running import AT_FAULT, FailedRow, RowRunner
from edgeserve.batch.sinks import (
    GrowingFile,
    RowSink,
    check_output,
    json_line,
    open_sink,
    resumable,
)
from edgeserve.batch.sources import RowSource
from edgeserve.errors import OutputExists, UsageError
from edgeserve.progress import Say, silent

# A worker that decodes rows must not keep Python's lock from one whose call has ended.
_SWITCH_S: Final = 0.001
_COMMIT_S: Final = 1.0
_SAY_S: Final = 0.2
# How long an interrupted run waits for calls that are under way.
_STOP_S: Final = 1.0


class BatchSummary(msgspec.Struct, frozen=True):
    """What a run did. `rows` are all rows of the source, `failed` those in the errors file, `resumed` those
    done by an earlier run; `rows_per_s` counts this run's."""

    source: str
    output: str
    errors: str | None
    answered_by: str
    rows: int
    failed: int
    resumed: int
    rows_per_call: int
    elapsed_s: float
    rows_per_s: float


class BatchRun:
    """One run. Owns its threads, which end when it is closed, and the files that it writes."""

    def __init__(
        self,
        path: Path,
        source: RowSource,
        model: RowModel,
        form: ResultForm,
        output: Path,
        *,
        resume: bool = False,
        force: bool = False,
    ) -> None:
        """Raises OutputExists, UsageError when the output cannot be continued, WriteFailed."""
        check_output(output)
        if output.exists() and path.exists() and output.samefile(path):
            raise UsageError(f"-o {output} is the source", hint="choose another -o")
        self._path = path
        self._source = source
        self._model = model
        self._form = form
        self._output = output
        self._errors_path = errors_path(output)
        self._progress_path = progress_path(output)
        self._key = source.key
        while self._key in {c.name for c in form.columns}:
            self._key += "_"
        columns = ", ".join(c.name for c in form.columns)
        fresh = RunProgress(source.identity(), model.identity, f"{self._key}, {columns}")
        self.progress = self._begin(fresh, resume=resume, force=force)
        self.resumed = self.progress.rows
        # First the file that other runs would lock, then the one that says that the others are incomplete.
        self._errors = GrowingFile(self._errors_path, self.progress.errors_position)
        try:
            progress_file.save(self._progress_path, self.progress)
            self._sink: RowSink = open_sink(output, self._key, form.columns, self.progress.position)
        except BaseException:
            self._errors.close()
            raise
        self._pace = RowPace(model.together, model.calls)
        self._runner = RowRunner(source, model, self._pace)
        # Some more threads than calls: rows are decoded and written down while others run.
        self._count = model.calls + max(1, model.calls // 2)
        self._waiting: queue.Queue[Portion | None] = queue.Queue()
        self._done: queue.Queue[_Done | BaseException] = queue.Queue()
        self._room = threading.Semaphore(2 * self._count)
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rows, self._failed = self.progress.rows, self.progress.failed
        # Whether writing or committing was broken off: then what was committed before counts.
        self._torn = False

    def _begin(self, fresh: RunProgress, *, resume: bool, force: bool) -> RunProgress:
        unfinished = self._progress_path.exists()
        if force:
            return fresh
        if resume and unfinished:
            before = progress_file.load(self._progress_path)
            progress_file.check_same(before, fresh, self._path, self._output)
            return before
        if unfinished:
            before = progress_file.load(self._progress_path)
            raise OutputExists(
                f"{self._output} is incomplete: an earlier run stopped after {before.rows} rows",
                hint="add --resume to continue it, or --force to start again",
            )
        for path in (self._output, self._errors_path):
            # A run that was killed at its start leaves an empty errors file.
            if path.exists() and (path == self._output or path.stat().st_size):
                raise OutputExists(
                    f"{path} exists", hint="add --force to replace it, or choose another -o"
                )
        return fresh

    # the run

    def run(self, say: Say = silent) -> BatchSummary:
        """Run every row that is not done. Raises DataError when the source cannot be read further, WriteFailed,
        and what makes the model unable to answer; what is committed stays, and another run can continue."""
        began = time.monotonic()
        if not self.progress.finished:
            interval = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_S)
            try:
                self._start()
                self._collect(_Reporter(say, began, self._rows, self._source.total))
            finally:
                self._stopped.set()
                sys.setswitchinterval(interval)
                if not self._torn:
                    self._commit(last=True)
            self._commit(last=True, finished=True)
        self._sink.finish()
        self._sink.close()
        self._errors.close()
        with resumable(self._errors_path):
            if not self._failed:
                self._errors_path.unlink(missing_ok=True)
            self._progress_path.unlink(missing_ok=True)
        elapsed = time.monotonic() - began
        return BatchSummary(
            source=str(self._path),
            output=str(self._output),
            errors=str(self._errors_path) if self._failed else None,
            answered_by=self._model.answered_by(),
            rows=self._rows,
            failed=self._failed,
            resumed=self.resumed,
            rows_per_call=self._pace.size,
            elapsed_s=elapsed,
            rows_per_s=(self._rows - self.resumed) / elapsed if elapsed else 0.0,
        )

    def _start(self) -> None:
        tasks = [self._read, *[self._work] * self._count]
        for index, task in enumerate(tasks):
            thread = threading.Thread(target=task, name=f"edgeserve-batch-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _collect(self, report: _Reporter) -> None:
        """Write what workers have done, in order, until all of it is."""
        early: dict[int, _Done] = {}
        following, ended = 0, 0
        committed = 0.0  # the first rows at once: then a kill leaves something to continue
        while ended < self._count or following in early:
            done = self._done.get()
            if isinstance(done, BaseException):
                raise done
            if done.number < 0:
                ended += 1
                continue
            early[done.number] = done
            while (ready := early.pop(following, None)) is not None:
                self._write(ready)
                following += 1
                self._room.release()
                report.rows(self._rows, self._failed, ready.share)
            if time.monotonic() - committed > _COMMIT_S:
                self._commit()
                committed = time.monotonic()

    def _write(self, done: _Done) -> None:
        self._torn = True
        self._sink.write(done.encoded)
        if done.failures:
            self._errors.write(b"".join(failure_line(self._key, f) for f in done.failures))
        self._rows += done.rows
        self._failed += len(done.failures)
        self._torn = False

    def _commit(self, last: bool = False, finished: bool = False) -> None:
        self._torn = True
        position = self._sink.commit(last)
        if position is None:
            self._torn = False
            return
        self.progress = msgspec.structs.replace(
            self.progress,
            rows=self._rows,
            failed=self._failed,
            position=position,
            errors_position=self._errors.commit(),
            finished=finished,
        )
        progress_file.save(self._progress_path, self.progress)
        self._torn = False

    # threads

    def _read(self) -> None:
        try:
            for portion in self._source.portions(self.resumed, self._pace.portion):
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._waiting.put(portion)
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            self._done.put(error)
        finally:
            for _ in range(self._count):
                self._waiting.put(None)

    def _work(self) -> None:
        try:
            while not self._stopped.is_set() and (portion := self._waiting.get()) is not None:
                self._done.put(self._answered(portion))
            self._done.put(_ENDED)
        except BaseException as error:  # noqa: BLE001 - raised again where the run is waited for
            self._done.put(error)

    def _answered(self, portion: Portion) -> _Done:
        answers, failures = self._runner.run(portion)
        named = []
        late: list[FailedRow] = []
        for answer in answers:
            try:
                named.append((answer.name, self._form.values(answer)))
            except AT_FAULT as error:
                late.append(FailedRow(answer.name, error))
        if late:
            order = {name: i for i, name in enumerate(portion.names)}
            failures = sorted([*failures, *late], key=lambda f: order[f.name])
        encoded = self._sink.encode(named)
        return _Done(portion.number, len(portion.values), encoded, failures, portion.share)

    # the end

    def close(self) -> None:
        """End the threads, and give up the files: what is committed can be continued."""
        self._stopped.set()
        for _ in range(2 * self._count):
            self._room.release()
            self._waiting.put(None)
        until = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._sink.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Done(msgspec.Struct, frozen=True):
    """A portion that was run; a negative number is the end of a worker."""

    number: int
    rows: int
    encoded: Any
    failures: Sequence[FailedRow]
    share: float | None


_ENDED: Final = _Done(-1, 0, None, (), None)


class _Reporter:
    """Says how many rows are done, how fast, and how long it will take."""

    def __init__(self, say: Say, began: float, resumed: int, total: int | None) -> None:
        self._say = say
        self._began = began
        self._resumed = resumed
        self._total = total
        self._share_before: float | None = None
        self._said = 0.0

    def rows(self, done: int, failed: int, share: float | None) -> None:
        now = time.monotonic()
        if self._share_before is None:
            # What was skipped took no time that tells how long the rest will take.
            self._share_before = 0.0 if not self._resumed or share is None else share
        if now - self._said < _SAY_S:
            return
        self._said = now
        elapsed = max(1e-9, now - self._began)
        rate = (done - self._resumed) / elapsed
        words = [f"{done:,} of {self._total:,} rows" if self._total else f"{done:,} rows"]
        words.append(f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s")
        run = (share or 0.0) - self._share_before
        if share is not None and run > 0:
            words.append(f"{duration(elapsed * (1 - share) / run)} left")
        if failed:
            words.append(f"{failed:,} failed")
        self._say(", ".join(words), share)


def is_complete(output: Path) -> bool:
    """Whether the output is there, and no run has more to do on it."""
    return output.exists() and not progress_path(output).exists()


def errors_path(output: Path) -> Path:
    """The file of rows without an answer, beside the output."""
    return output.with_name(f"{output.stem}.errors.jsonl")


def failure_line(key: str, failure: FailedRow) -> bytes:
    error = failure.error
    found = {key: failure.name, "error": error.message}
    if error.cause:
        found["cause"] = error.cause
    if error.hint:
        found["hint"] = error.hint
    # Messages of other libraries may hold bytes that are not UTF-8, from file names for instance.
    return json_line({n: _valid(v) if isinstance(v, str) else v for n, v in found.items()})


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def duration(seconds: float) -> str:
    """As clocks show it: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
