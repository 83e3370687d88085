"""The models of one server by name and version: what protocols ask for a model, and how it changes while requests run.

Every change is made in steps: plan which versions are to be loaded, then for each prepare (open) it and commit
(serve) or abort it, then finish. Where several workers serve, the supervisor has all of them take each step together
(supervisor/changes.py); one process takes them with itself, in `start`, `refresh` and `load`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from edgeserve.errors import (
    EdgeServeError,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    UsageError,
    quoted,
)
from edgeserve.serve.models.entries import Entry, Opens
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.sources import Key, ModelSource
from edgeserve.serve.models.versions import Versions
from edgeserve.serve.process.blocking import apart, unless

log = logging.getLogger(__name__)

# What load takes beside the name: nothing, so far. Models come from this machine's disk only.
Parameters = Mapping[str, "str | int | bool | bytes"]
Scan = Callable[[], list[ModelSource]]


class ModelRepository:
    """Lives on the event loop; owns the versions that there are. `scan` says what is on disk."""

    def __init__(
        self,
        opener: Opens,
        scan: Scan,
        *,
        budget: int = 0,
        readiness: Literal["all", "any"] = "all",
        resident: Callable[[], int] = lambda: 0,
    ) -> None:
        """`budget` is in bytes of memory (0: none), `resident` what the process takes of it now."""
        self._scan = scan
        self._readiness = readiness
        self._versions = Versions(opener, budget, resident)
        # One change of a model at a time; changes of different models do not wait for each other.
        self._changing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._following = asyncio.Lock()
        self._changes: Counter[str] = Counter()  # by clients
        self._serving = False

    # What protocols ask

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model that answers for `name`: its newest version unless one is named.

        Raises ModelNotFound, and ModelUnavailable for one that is known but does not serve.
        """
        if version is None:
            model = self._versions.newest.get(name)
            if model is not None:
                return model
        versions = self._versions.of(name)
        if not versions:
            known = ", ".join(self._versions.newest) or "none"
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
        entries = self._versions.of(name)
        return sorted((v for v, e in entries.items() if e.model is not None), key=int)

    def loaded(self) -> list[ServedModel]:
        """The models that answer requests, also those that are in memory only when they are asked for."""
        return [e.model for e in self.entries() if e.model is not None]

    def entries(self) -> list[Entry]:
        """Every version of every known model; to be read only."""
        return self._versions.all()

    def registered(self) -> list[str]:
        """The names of the models that are loaded or failed to load, in order."""
        found = self.entries()
        return sorted({e.source.name for e in found if e.model is not None or e.failed})

    def pending(self) -> dict[Key, int]:
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
        return self._serving and self._versions.answer(self._readiness)

    def answers(self, key: Key) -> bool:
        """Whether a version answers requests now."""
        entry = self._versions.get(key)
        return self._serving and entry is not None and entry.model is not None and entry.model.ready

    def load_states(self) -> dict[Key, bool]:
        """Every known version, and whether its last load failed."""
        return {e.source.key: e.failed for e in self.entries()}

    def load_failures(self) -> dict[str, int]:
        """How often loading failed since the server started, by the models' names."""
        return dict.fromkeys(self._versions.names(), 0) | self._versions.load_failures

    def failures(self) -> list[EdgeServeError]:
        """Why models that shall serve do not."""
        return [e.error for e in self.entries() if e.error is not None and e.model is None]

    # The steps of a change

    def plan(self, sources: Sequence[ModelSource], *, demanded: bool) -> list[Key]:
        """The versions among `sources` that are to be loaded: what is new, has changed, or failed a while
        ago; if they are `demanded`, all."""
        off = {e.source.name: e.off for e in self.entries() if e.off}
        wanted = []
        for source in sources:
            entry = self._versions.get(source.key)
            if demanded:
                entry = entry or self._versions.enter(source)
                entry.source, entry.off = source, None
            elif entry is None:
                entry = self._versions.enter(source)
                entry.off = off.get(source.name)
            elif entry.source.loads_as(source):
                if entry.error is None:
                    settled = entry.model is not None or entry.off is not None
                else:
                    settled = time.monotonic() < entry.retry_at
                if settled:
                    continue
            else:
                entry.source, entry.failures = source, 0
            if entry.off is None:
                wanted.append(source.key)
        return wanted

    async def prepare(self, key: Key, *, demanded: bool) -> None:
        """Open a version. Raises what opening raises; ModelUnavailable for one that is not known."""
        async with self._changing[key[0]]:
            await self._prepare(key, demanded=demanded)

    async def _prepare(self, key: Key, *, demanded: bool) -> None:
        entry = self._versions.get(key)
        if self._versions.leaving.is_set():
            raise ModelUnavailable(f"model '{key[0]}' is not loaded", cause="the server ends")
        if entry is None:
            raise ModelUnavailable(f"model '{key[0]}' is not known to this worker")
        await self._versions.open(entry, demanded=demanded)

    def commit(self, key: Key) -> None:
        """Serve what was prepared. Raises ModelUnavailable where nothing was."""
        entry = self._versions.get(key)
        if entry is None:
            raise ModelUnavailable(f"model '{key[0]}' was not opened here")
        self._versions.put(entry)

    async def abort(self, key: Key, error: EdgeServeError) -> None:
        """Give up what was prepared, which could not be opened elsewhere."""
        entry = self._versions.get(key)
        if entry is not None:
            self._versions.failed(entry, error)
            await self._versions.give_up(entry, "it could not be loaded everywhere")

    def finish(self, keys: Collection[Key], name: str | None) -> None:
        """Drop what is not among `keys`: of the model that is named, or of all."""
        entries = self.entries() if name is None else self._versions.of(name).values()
        self._versions.drop_others(entries, set(keys))

    async def _change(
        self, sources: Sequence[ModelSource], name: str | None, *, demanded: bool = False
    ) -> list[EdgeServeError]:
        """All steps, of a process that is alone; what went wrong, which is also kept with each version."""
        failures = []
        for key in self.plan(sources, demanded=demanded):
            try:
                await self._prepare(key, demanded=demanded)
            except EdgeServeError as error:
                failures.append(error)
            else:
                self.commit(key)
        self.finish([s.key for s in sources], name)
        return failures

    # What is changed

    async def start(
        self,
        names: Collection[str] | None = None,
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
                entry = self._versions.enter(source)
                if names is not None and source.name not in names:
                    entry.off = "it was not asked for"
                if off is not None and source.name in off:
                    entry.off = off[source.name]
                if entry.off is None and (expected is None or source.name in expected):
                    self._versions.expected.add(source.name)
            await self._change([*older, *sources], None)
            self.finish(known, None)

    async def refresh(self) -> None:
        """Follow the files: load what is new or has changed, drop what is gone, try again what failed.

        What is replaced answers until its successor does.
        """
        async with self._following:
            changed = dict(self._changes)
            try:
                sources = await self._scanned()
            except EdgeServeError as error:
                if not self._versions.leaving.is_set():
                    log.error("the models are not reloaded: %s", error)  # noqa: TRY400 - the reason is in its words
                return
            by_name: dict[str, list[ModelSource]] = {name: [] for name in self._versions.names()}
            for source in sources:
                by_name.setdefault(source.name, []).append(source)

            async def follow(name: str) -> None:
                async with self._changing[name]:
                    # A client may have changed it after the scan.
                    if self._changes[name] == changed.get(name, 0):
                        await self._change(by_name[name], name)

            if (
                self._versions.bounded
            ):  # in turn, so that each finds the memory that the one before left
                for name in by_name:
                    await follow(name)
            else:
                await asyncio.gather(*map(follow, by_name))

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """Load a model, or load it again: what served it is answered and then closed.

        Raises ModelNotFound, InvalidInput, and what opening its bundle raises.
        """
        check_parameters(parameters)
        async with self._changing[name]:
            sources = [s for s in await self._scanned() if s.name == name]
            if not sources:
                if not self._versions.of(name):
                    self._changing.pop(name)  # a client's word is not kept
                raise ModelNotFound(
                    f"failed to load: no model {quoted(name)} in this server's repository"
                )
            self._changes[name] += 1
            failures = await self._change(sources, name, demanded=True)
        if failures:
            raise failures[0]

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it has begun is answered first. Raises ModelNotFound."""
        if not self._versions.of(name):
            raise ModelNotFound(f"no model {quoted(name)} in this server's repository")
        async with self._changing[name]:
            entries = list(self._versions.of(name).values())
            if not entries:
                raise ModelNotFound(f"no model {quoted(name)} in this server's repository")
            self._changes[name] += 1
            closing = [self._versions.retire(e, "it was unloaded", grace=False) for e in entries]
            for entry in entries:
                entry.off, entry.error, entry.state = "it was unloaded", None, "UNLOADING"
        await asyncio.gather(*(task for task in closing if task is not None))
        for entry in entries:
            if entry.state == "UNLOADING":
                entry.state = "UNAVAILABLE"

    async def adopt(
        self, sources: Sequence[ModelSource], off: Mapping[str, str], on: Collection[str]
    ) -> None:
        """Be as a process is that has been there all the time: with these sources, these models off, those
        on. What cannot be loaded is kept with its reason."""
        for name in off:
            for entry in self._versions.of(name).values():
                if entry.off is None:
                    self._versions.retire(entry, off[name], grace=True)
                    entry.off, entry.error = off[name], None
        for name in {s.name for s in sources} - set(off):
            for entry in self._versions.of(name).values():
                entry.off = None if name in on else entry.off
        await self._change(sources, None)

    async def _scanned(self) -> list[ModelSource]:
        """What is on disk. Raises what scanning raises, and ModelUnavailable when the server ends."""
        return await unless(self._versions.leaving, apart(self._scan))

    # Starting and ending

    def serve(self) -> None:
        self._serving = True

    def stop_serving(self) -> None:
        """Not ready from now on. Versions that are being opened are given up; requests are answered."""
        self._serving = False
        self._versions.leaving.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; False when time ran out."""
        engines = [m.engine for m in self.loaded() if m.engine is not None]
        return all(await asyncio.gather(*(e.drain(timeout_s) for e in engines)))

    async def close(self) -> None:
        """Close every model; what still waits is not answered."""
        self._versions.end()
        for lock in (self._following, *list(self._changing.values())):
            async with lock:  # whoever has it was told to leave
                pass
        await self._versions.close()


def check_parameters(parameters: Parameters | None) -> None:
    """Raises InvalidInput for what `load` does not take."""
    if parameters:
        raise InvalidInput(
            f"load parameter '{min(parameters)}' is not taken: models come from this server's disk"
        )
