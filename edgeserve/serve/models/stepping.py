"""The models of one of several processes: changed in steps that all of them take together."""

from __future__ import annotations

import asyncio
import time

from edgeserve.errors import EdgeServeError, ModelUnavailable
from edgeserve.serve.models.entries import Entry
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import ModelSource

Key = tuple[str, str]


class SteppingRepository(ModelRepository):
    """A repository whose versions are opened first, and serve once they are open everywhere.

    One change at a time: `plan`, then `prepare` and `commit` or `abort` for each version, then `finish`.
    """

    def plan(self, sources: list[ModelSource], name: str | None) -> list[Key]:
        """The versions among `sources` that are to be loaded: what is new, has changed, or failed a while
        ago; if `name` is given, all."""
        off = {n: e.off for n, v in self._entries.items() for e in v.values() if e.off}
        wanted = []
        for source in sources:
            entry = self._entries.get(source.name, {}).get(source.version)
            if name is not None:
                entry = entry or self._enter(source)
                entry.source, entry.off = source, None
            elif entry is None:
                entry = self._enter(source)
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
            if name is not None or entry.off is None:
                wanted.append(source.key)
        return wanted

    async def prepare(self, key: Key, *, demanded: bool) -> None:
        """Open a version. Raises what opening raises; ModelUnavailable for one that is not known."""
        async with self._changing[key[0]]:
            entry = self._entries.get(key[0], {}).get(key[1])
            if entry is None or self._leaving.is_set():
                raise ModelUnavailable(f"model '{key[0]}' is not known to this worker")
            before, entry.state = entry.state, "LOADING"
            try:
                opened = await self._opened(entry, demanded=demanded)
            except EdgeServeError as error:
                self._failed(entry, error)
                raise
            finally:
                entry.state = before
            entry.opened = opened

    def commit(self, key: Key) -> None:
        """Serve what was prepared."""
        entry = self._entries.get(key[0], {}).get(key[1])
        if entry is None or entry.opened is None:
            raise ModelUnavailable(f"model '{key[0]}' was not opened here")
        opened, entry.opened = entry.opened, None
        self._put(entry, opened)

    async def abort(self, key: Key, error: EdgeServeError) -> None:
        """Give up what was prepared, which could not be opened elsewhere."""
        entry = self._entries.get(key[0], {}).get(key[1])
        if entry is not None:
            self._failed(entry, error)
            await _give_up(entry, "it could not be loaded everywhere")

    def finish(self, keys: list[Key], name: str | None) -> None:
        """Drop what is not among `keys`: of the model that is named, or of all."""
        entries = self.entries() if name is None else list(self._entries.get(name, {}).values())
        self._drop_others(entries, set(keys))

    async def adopt(
        self, sources: list[ModelSource], off: dict[str, str], on: tuple[str, ...]
    ) -> None:
        """Be as a process is that has been there all the time: with these sources, these models off, those
        on. What cannot be loaded is kept with its reason."""
        for name in off:
            for entry in self._entries.get(name, {}).values():
                if entry.off is None:
                    self._retire(entry, off[name], grace=True)
                    entry.off, entry.error = off[name], None
        for name in {s.name for s in sources} - set(off):
            for entry in self._entries.get(name, {}).values():
                entry.off = None if name in on else entry.off
        for key in self.plan(sources, None):
            try:
                await self.prepare(key, demanded=False)
            except EdgeServeError:
                continue  # noted, and told to whoever asks for the model
            self.commit(key)
        self.finish([s.key for s in sources], None)

    async def close(self) -> None:
        await super().close()
        for entry in self.entries():
            await _give_up(entry, "the server ends")


async def _give_up(entry: Entry, reason: str) -> None:
    opened, entry.opened = entry.opened, None
    if opened is None:
        return
    opened.model.close(reason)
    if opened.engine is not None:
        await asyncio.to_thread(opened.engine.close)
