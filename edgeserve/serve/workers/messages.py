"""The messages between workers and their supervisor."""

from __future__ import annotations

import msgspec

from edgeserve.serve.metrics.shared import Family
from edgeserve.serve.metrics.statistics import ModelStatistics
from edgeserve.serve.models.sources import Key, ModelSource
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.shm import Region
from edgeserve.serve.workers.inherited import Listener
from edgeserve.wire.failures import Failure

# What workers are and have


class Report(msgspec.Struct, frozen=True):
    """What one worker has counted."""

    families: list[Family]
    statistics: list[ModelStatistics]


class Total(msgspec.Struct, frozen=True):
    """The workers' reports as one. Of the `silent`, which did not answer in time, it holds what they said
    last."""

    families: list[Family]
    statistics: list[ModelStatistics]
    silent: list[int] = []


class Journal(msgspec.Struct, frozen=True):
    """What became of a server since it started, for a worker that starts later. `number` grows with each
    change; `off` are models that shall not be loaded, and why; `on` are those that were loaded although
    the settings do not name them; the server is not ready without the `expected` models (None: all there
    are). `held` are the versions that serve, whose successors may have failed."""

    settings: Settings
    number: int = 0
    off: dict[str, str] = {}
    on: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    expected: tuple[str, ...] | None = None
    held: tuple[ModelSource, ...] = ()


# The supervisor asks workers


class TellStatus(msgspec.Struct, frozen=True, tag=True):
    """Answered with ServerStatus: of this worker alone."""


class TellReport(msgspec.Struct, frozen=True, tag=True):
    """Answered with Report."""


class Plan(msgspec.Struct, frozen=True, tag=True):
    """Which of these sources are to be loaded? All, if they are demanded. Answered with their keys."""

    sources: list[ModelSource]
    demanded: bool = False


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Open a version of the plan; it does not serve yet."""

    key: Key
    demanded: bool = False


class Commit(msgspec.Struct, frozen=True, tag=True):
    """Serve what was opened."""

    key: Key


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Close what was opened: it failed in another worker."""

    key: Key
    failure: Failure


class Finish(msgspec.Struct, frozen=True, tag=True):
    """The plan is done: drop what is not among `keys` (of one model if `name` is set)."""

    keys: list[Key]
    name: str | None = None


class ReadKeys(msgspec.Struct, frozen=True, tag=True):
    """Read the keys again; removed keys stop working."""


# Workers ask the supervisor


class AskStatus(msgspec.Struct, frozen=True, tag=True):
    """Answered with ServerStatus."""


class AskCounts(msgspec.Struct, frozen=True, tag=True):
    """Answered with Total."""


class Join(msgspec.Struct, frozen=True, tag=True):
    """Sent before a worker listens: no change is made until it does. Answered with Journal."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The worker listens; `started` is for the start-up table (MessagePack)."""

    started: bytes


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The worker is about to stop accepting connections."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot serve."""

    failure: Failure


class Push(msgspec.Struct, frozen=True, tag=True):
    """What the worker has counted, in case it ends."""

    report: Report


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a model, or load it again, in all workers."""

    name: str


class Refresh(msgspec.Struct, frozen=True, tag=True):
    """Have all workers follow settings and files."""


# Both ways


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Stop serving a model."""

    name: str


class Register(msgspec.Struct, frozen=True, tag=True):
    """Register a shared memory region."""

    region: Region


class Unregister(msgspec.Struct, frozen=True, tag=True):
    """Forget a shared memory region, or all."""

    name: str | None = None


Request = (
    TellStatus
    | TellReport
    | Plan
    | Prepare
    | Commit
    | Abort
    | Finish
    | ReadKeys
    | AskStatus
    | AskCounts
    | Join
    | Serving
    | Leaving
    | Failed
    | Push
    | Load
    | Refresh
    | Unload
    | Register
    | Unregister
)


class Order(msgspec.Struct, frozen=True):
    """What a worker is told before anything else: which of them it is, what to serve, and the descriptors
    that it has inherited."""

    worker: int
    journal: Journal
    verbosity: int
    listeners: tuple[Listener, ...]
    pool: int


class Call(msgspec.Struct, frozen=True, tag=True):
    """A request on the wire."""

    number: int
    request: Request


class Return(msgspec.Struct, frozen=True, tag=True):
    """Its answer, or its error."""

    number: int
    body: msgspec.Raw
    failure: Failure | None = None
