"""The models of one server by name and version: what protocols ask for a model, what is loaded, and how
that changes while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Final, Literal

from edgeserve.errors import (
    EdgeServeError,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    UsageError,
    quoted,
)
from edgeserve.serve.apart import apart, unless
from edgeserve.serve.engine import Engine
from edgeserve.serve.heap import collect
from edgeserve.serve.models.entries import Entry, Opened, Opens, answers
from edgeserve.serve.models.memory import Memory
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.sources import ModelSource

log = logging.getLogger(__name__)

# What load takes beside the name: nothing, so far. Models come from this machine's disk only.
Parameters = Mapping[str, "str | int | bool | bytes"]
Scan = Callable[[], list[ModelSource]]

# A request may hold a model for a moment before it runs: replaced ones answer that much longer.
_GRACE_S: Final = 1.0
# A model that fails to load is tried again after that, then after twice as long each time, up to the last.
_RETRY_S: Final = 1.0
_RETRY_LONGEST_S: Final = 60.0


class ModelRepository:
    """Lives on the event loop; owns its models, and the tasks that load and close them.

    With a `budget` (bytes, 0: none) models come into memory when they are asked for, and those asked for
    least recently leave it; a model that runs something is never closed before that is answered.
    """

    def __init__(
        self,
        opener: Opens,
        scan: Scan,
        *,
        budget: int = 0,
        readiness: Literal["all", "any"] = "all",
        resident: Callable[[], int] = lambda: 0,
    ) -> None:
        self._opener = opener
        self._scan = scan
        self._readiness = readiness
        self._entries: dict[str, dict[str, Entry]] = {}
        self._memory = Memory(opener, budget, resident, self.entries, self._finish)
        self._newest: dict[str, ServedModel] = {}
        # One change of a model at a time; changes of different models do not wait for each other.
        self._changing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._following = asyncio.Lock()
        self._changes: Counter[str] = Counter()  # by clients
        self._tasks: set[asyncio.Task[None]] = set()
        self._demanded: set[tuple[str, str]] = set()
        self._serving = False
        self._leaving = asyncio.Event()  # no version is opened any more, but what requests wait for
        self._ending = asyncio.Event()
        # Models whose absence makes the server unready: those it started with, and those that have served.
        self._expected: set[str] = set()
        self._load_failures: dict[str, int] = {}

    # What protocols ask

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model that answers for `name`: its newest version unless one is named.

        Raises ModelNotFound, and ModelUnavailable for one that is known but does not serve.
        """
        if version is None:
            model = self._newest.get(name)
            if model is not None:
                return model
        versions = self._entries.get(name)
        if not versions:
            known = ", ".join(self._newest) or "none"
            # Triton's own example clients look for this beginning.
            raise ModelNotFound(f"Request for unknown model {quoted(name)}; loaded: {known}")
        if version is None:
            entry = versions[max(versions, key=int)]
        elif version in versions:
            entry = versions[version]
        else:
            there = ", ".join(sorted(versions, key=int))
            raise ModelNotFound(f"no version {quoted(version)} of '{name}': it has {there}")
        if entry.model is None:
            raise ModelUnavailable(f"model '{name}' is not ready", cause=entry.reason)
        return entry.model

    def versions(self, name: str) -> list[str]:
        """The loaded versions of a model, oldest first."""
        entries = self._entries.get(name, {})
        return sorted((v for v, e in entries.items() if e.model is not None), key=int)

    def loaded(self) -> list[ServedModel]:
        """The models that answer requests, also those that are in memory only when they are asked for."""
        return [e.model for e in self.entries() if e.model is not None]

    def entries(self) -> list[Entry]:
        """Every version of every known model; to be read only."""
        return [e for versions in self._entries.values() for e in versions.values()]

    def pending(self) -> dict[tuple[str, str], int]:
        """The requests of each loaded version that wait or run."""
        return {(m.name, m.version): m.pending() for m in self.loaded()}

    @property
    def serving(self) -> bool:
        """Whether the server takes requests at all: it has started, and does not drain."""
        return self._serving

    @property
    def ready(self) -> bool:
        """Whether the server takes requests and its models answer: every model that should serve has a
        version that does, or any model has.

        A server that serves nothing is not ready. A model that came later and has never served here does not
        count until it does: nobody was sent here for it.
        """
        if not self._serving:
            return False
        return answers(self._entries, self._expected, self._readiness)

    def load_states(self) -> dict[tuple[str, str], bool]:
        """Every known version, and whether its last load failed."""
        return {e.source.key: e.failed for e in self.entries()}

    def load_failures(self) -> dict[str, int]:
        """How often loading failed since the server started, by the models' names."""
        return dict.fromkeys(self._entries, 0) | self._load_failures

    # How it changes

    async def start(
        self,
        names: tuple[str, ...] | None = None,
        off: Mapping[str, str] | None = None,
        expected: Collection[str] | None = None,
        held: Collection[ModelSource] = (),
    ) -> None:
        """Load what there is (`names`: only those), but for models that are `off`, which says why. What
        fails is kept with its reason. The server is not ready without the `expected` models (None: all).
        `held` are versions that serve elsewhere, and here too until a newer one does.

        Raises UsageError when the settings cannot be followed.
        """
        sources = await self._scanned()
        known, there = {s.key for s in sources}, {s.name for s in sources}
        older = [s for s in held if s.key not in known and s.name in there]
        absent = sorted(set(names or ()) - there)
        if absent:
            raise UsageError(f"load: there is no model '{absent[0]}'")
        async with self._following:
            for source in (*older, *sources):
                entry = self._enter(source)
                if names is not None and source.name not in names:
                    entry.off = "it was not asked for"
                if off is not None and source.name in off:
                    entry.off = off[source.name]
                if entry.off is None and (expected is None or source.name in expected):
                    self._expected.add(source.name)
            for entry in self.entries():
                if entry.off is None:
                    await self._try(entry)
            self._drop_others(self.entries(), known)

    def failures(self) -> list[EdgeServeError]:
        """Why models that shall serve do not."""
        return [e.error for e in self.entries() if e.error is not None and e.model is None]

    async def refresh(self) -> None:
        """Follow the files: load what is new or has changed, drop what is gone, try again what failed.

        What is replaced answers until its successor does.
        """
        async with self._following:
            changed = dict(self._changes)
            try:
                sources = await self._scanned()
            except EdgeServeError as error:
                if not self._leaving.is_set():
                    log.error("the models stay as they are: %s", error)  # noqa: TRY400 - the reason is in its words
                return
            by_name: dict[str, list[ModelSource]] = {name: [] for name in self._entries}
            for source in sources:
                by_name.setdefault(source.name, []).append(source)
            for name, its in by_name.items():
                async with self._changing[name]:
                    if self._changes[name] != changed.get(name, 0):
                        continue  # a client changed it after the scan
                    entries = self._entries.get(name, {})
                    off = next((e.off for e in entries.values() if e.off), None)
                    for source in its:
                        await self._follow(source, off)
                    self._drop_others(list(entries.values()), {s.key for s in its})

    async def _scanned(self) -> list[ModelSource]:
        """What is on disk. Raises what scanning raises, and ModelUnavailable when the server ends."""
        return await unless(self._leaving, apart(self._scan))

    def _drop_others(self, entries: list[Entry], known: set[tuple[str, str]]) -> None:
        """Drop what is not among `known`; but a version that serves stays until one of those does."""
        for entry in entries:
            if entry.source.key in known:
                continue
            wanted = [e for e in self._entries[entry.source.name].values()
                      if e.source.key in known and e.off is None]  # fmt: skip
            if entry.model is None or not wanted or any(e.model is not None for e in wanted):
                self._drop(entry, "it is not served any more")

    async def _follow(self, source: ModelSource, off: str | None) -> None:
        entry = self._entries.get(source.name, {}).get(source.version)
        if entry is None:
            entry = self._enter(source)
            entry.off = off
        elif entry.source.loads_as(source):
            if entry.error is None or time.monotonic() < entry.retry_at:
                return
        else:
            entry.source, entry.failures = source, 0
        if entry.off is None:
            await self._try(entry)

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """Load a model, or load it again: what served it is answered and then closed.

        Raises ModelNotFound, InvalidInput, and what opening its bundle raises.
        """
        if parameters:
            raise InvalidInput(
                f"load parameter '{min(parameters)}' is not taken: models come from this server's disk"
            )
        async with self._changing[name]:
            sources = [s for s in await self._scanned() if s.name == name]
            if not sources:
                if name not in self._entries:
                    self._changing.pop(name)  # a client's word is not kept
                raise ModelNotFound(
                    f"failed to load: no model {quoted(name)} in this server's repository"
                )
            self._changes[name] += 1
            failed: EdgeServeError | None = None
            for source in sources:
                entry = self._entries.get(name, {}).get(source.version) or self._enter(source)
                entry.source, entry.off = source, None
                await self._try(entry, demanded=True)
                failed = failed or entry.error
            self._drop_others(list(self._entries[name].values()), {s.key for s in sources})
        if failed is not None:
            raise failed

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it has begun is answered first. Raises ModelNotFound."""
        if name not in self._entries:
            raise ModelNotFound(f"no model {quoted(name)} in this server's repository")
        async with self._changing[name]:
            entries = self._entries.get(name)
            if not entries:
                raise ModelNotFound(f"no model {quoted(name)} in this server's repository")
            self._changes[name] += 1
            closing = [self._retire(e, "it was unloaded", grace=False) for e in entries.values()]
            for entry in entries.values():
                entry.off, entry.error, entry.state = "it was unloaded", None, "UNLOADING"
        await asyncio.gather(*(task for task in closing if task is not None))
        for entry in entries.values():
            if entry.state == "UNLOADING":
                entry.state = "UNAVAILABLE"

    def _enter(self, source: ModelSource) -> Entry:
        entry = Entry(source)
        self._entries.setdefault(source.name, {})[source.version] = entry
        return entry

    async def _try(self, entry: Entry, *, demanded: bool = False) -> None:
        """Load an entry as its source says; a failure is kept in it. Where memory is short only one that
        was demanded, or is in memory already, sends others away."""
        if self._leaving.is_set():
            return
        before = entry.state
        entry.state = "LOADING"
        try:
            opened = await self._opened(entry, demanded=demanded)
        except EdgeServeError as error:
            if self._leaving.is_set():
                entry.error = error
            else:
                self._failed(entry, error)
            entry.state = before if entry.model is not None else "UNAVAILABLE"
            return
        self._put(entry, opened)

    async def _opened(self, entry: Entry, *, demanded: bool) -> Opened:
        """What an entry's source gives, before it serves. Raises what opening raises."""
        source = entry.source
        model = await unless(self._leaving, apart(partial(self._opener.describe, source)))
        into_memory = demanded or entry.in_memory or self._memory.fits(entry, model)
        if not into_memory:
            return Opened(source, model, None)
        return Opened(source, model, await unless(self._leaving, self._memory.open(entry, model)))

    def _put(self, entry: Entry, opened: Opened) -> None:
        """Serve what was opened from now on; what served before answers what it has."""
        model, source = opened.model, opened.source
        if self._memory.bounded:
            model.wanted = self._demand
        if opened.engine is not None:
            model.attach(opened.engine)
        old, entry.model = entry.model, model
        entry.state, entry.error, entry.failures = "READY", None, 0
        if opened.engine is not None:
            self._expected.add(source.name)
        self._note_newest(source.name)
        if old is not None:
            log.info("model '%s' version %s was replaced", *source.key)
            self._later(self._close(old, "it was replaced", grace=True))

    async def _finish(self, engine: Engine) -> None:
        """Close an engine once it has answered what it has, or the server ends."""
        drained = asyncio.ensure_future(engine.drain(None))
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait({drained, ending}, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        ending.cancel()
        await asyncio.to_thread(engine.close)

    def _demand(self, model: ServedModel) -> None:
        """A request waits for a model that is not in memory."""
        key = (model.name, model.version)
        entry = self._entries.get(model.name, {}).get(model.version)
        if self._ending.is_set() or entry is None or entry.model is not model:
            model.fail(ModelUnavailable(f"model '{model.name}' was replaced", hint="ask again"))
        elif entry.error is not None and time.monotonic() < entry.retry_at:
            cause = entry.problem
            model.fail(ModelUnavailable(f"model '{model.name}' is not ready", cause=cause))
        elif key not in self._demanded:
            self._demanded.add(key)
            self._later(self._bring(key))

    async def _bring(self, key: tuple[str, str]) -> None:
        try:
            entry = self._entries.get(key[0], {}).get(key[1])
            model = entry.model if entry is not None else None
            if entry is None or model is None or model.engine is not None:
                return
            try:
                engine = await unless(self._ending, self._memory.open(entry, model))
            except EdgeServeError as error:
                if not self._ending.is_set():
                    self._failed(entry, error)
                cause = entry.problem
                model.fail(ModelUnavailable(f"model '{key[0]}' is not ready", cause=cause))
                return
            entry.error, entry.failures = None, 0
            if entry.model is not model or self._ending.is_set():  # replaced or dropped meanwhile
                await asyncio.to_thread(engine.close)
                model.fail(ModelUnavailable(f"model '{key[0]}' was replaced", hint="ask again"))
                return
            model.attach(engine)
            self._expected.add(model.name)
        finally:
            self._demanded.discard(key)

    def _failed(self, entry: Entry, error: EdgeServeError) -> None:
        entry.error = error
        entry.failures += 1
        name = entry.source.name
        self._load_failures[name] = self._load_failures.get(name, 0) + 1
        pause = min(_RETRY_LONGEST_S, _RETRY_S * 2 ** min(10, entry.failures - 1))
        entry.retry_at = time.monotonic() + pause
        log.error(
            "model '%s' version %s cannot be loaded (attempt %d): %s",
            *entry.source.key, entry.failures, error,
        )  # fmt: skip

    def _drop(self, entry: Entry, reason: str) -> None:
        """Forget an entry for good."""
        name, version = entry.source.key
        self._retire(entry, reason, grace=True)
        del self._entries[name][version]
        if not self._entries[name]:
            del self._entries[name]
            self._expected.discard(name)

    def _retire(self, entry: Entry, reason: str, *, grace: bool) -> asyncio.Task[None] | None:
        """Take an entry's model out of service, and close it once it has answered what it has."""
        model, entry.model = entry.model, None
        entry.state = "UNAVAILABLE"
        self._note_newest(entry.source.name)
        if model is None:
            return None
        self._opener.forget(model)
        return self._later(self._close(model, reason, grace=grace))

    async def _close(self, model: ServedModel, reason: str, *, grace: bool) -> None:
        if grace:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _GRACE_S)
        model.close(reason)
        engine = model.engine
        if engine is not None:
            await self._finish(engine)
            model.detach(reason)
            await asyncio.to_thread(collect)

    def _note_newest(self, name: str) -> None:
        there = {v: e.model for v, e in self._entries.get(name, {}).items() if e.model is not None}
        if there:
            self._newest[name] = there[max(there, key=int)]
        else:
            self._newest.pop(name, None)

    def _later(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Starting and ending

    def serve(self) -> None:
        self._serving = True

    def stop_serving(self) -> None:
        """Not ready from now on. Versions that are being opened are given up; requests are answered."""
        self._serving = False
        self._leaving.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; False when time ran out."""
        engines = [m.engine for m in self.loaded() if m.engine is not None]
        return all(await asyncio.gather(*(e.drain(timeout_s) for e in engines)))

    async def close(self) -> None:
        """Close every model; what still waits is not answered."""
        self._leaving.set()
        self._ending.set()
        for lock in (self._following, *list(self._changing.values())):
            async with lock:  # whoever has it was told to leave
                pass
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for entry in self.entries():
            model, entry.model = entry.model, None
            if model is None:
                continue
            engine = model.detach("the server ends")
            model.close("the server ends")
            if engine is not None:
                await asyncio.to_thread(engine.close)
        self._newest.clear()
