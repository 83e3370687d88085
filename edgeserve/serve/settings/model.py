"""What can be set for one priority of a model, and for one model. The server's settings have all of it, too."""

# Annotations are not strings here: `run --help` would have to compile a hundred of them.
from functools import partial
from typing import Annotated, Final, Literal

import msgspec

from edgeserve.serve.settings.setting import Group, Setting, Unit, table

_VERSIONS: Final = r"latest(:[1-9]\d{0,3})?|all|[1-9]\d{0,17}(,[1-9]\d{0,17})*"
SECONDS: Final = Unit.SECONDS

_what = partial(Setting, Group.WHAT)
_devices = partial(Setting, Group.DEVICES)
_batching = partial(Setting, Group.BATCHING)


class PerLevel(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that may differ for the requests of one priority."""

    queue: Annotated[
        int,
        _batching(
            "Maximum queued and running requests of a model",
            ge=1,
            more="Beyond it, requests get 503 with `Retry-After`. `limits.in_flight` "
            "[limits all models of one process](security.md#limits)",
            pbtxt="max_queue_size",
        ),
    ] = 1024
    timeout: Annotated[
        float,
        _batching(
            "Deadline of a request in seconds; 0: none",
            SECONDS,
            ge=0,
            more="When it passes, the request gets 504. A request that has not started by then is not run. A request's own `timeout` "
            "parameter, in microseconds, overrides it",
            pbtxt="default_timeout_microseconds",
        ),
    ] = 0.0
    own_timeouts: Annotated[
        bool,
        _batching(
            "on: a request's own timeout replaces the deadline; off: it can only shorten the deadline",
            flag=None,
            pbtxt="allow_timeout_override",
        ),
    ] = True
    timeout_action: Annotated[
        Literal["reject", "delay"],
        _batching(
            "`delay`: a request whose deadline has passed [moves behind the others](#priorities); "
            "`reject`: it gets 504",
            flag=None,
            pbtxt="timeout_action",
        ),
    ] = "reject"


@table
class PriorityTable(PerLevel, frozen=True, kw_only=True):
    """One `[[priority]]` table. What it leaves out is as for the model; with a `queue` of its own the level
    is not counted in the model's."""

    level: int


class PerModel(PerLevel, frozen=True, kw_only=True):
    """Settings that may differ for one model."""

    versions: Annotated[
        str,
        _what(
            "Model versions to serve: latest, latest:N (the newest N), all, or a list such as 1,3",
            pattern=_VERSIONS,
            expected="latest, latest:2, all, or numbers such as 1,3",
            pbtxt="version_policy",
        ),
    ] = "latest"
    device: Annotated[str | None, _devices("Use only this device, such as cpu")] = None
    variant: Annotated[str | None, _devices("Use only this variant of the model")] = None
    require: Annotated[
        str | None,
        _devices(
            "Try this device first. Without it, do not start; if lost later, report not ready",
            metavar="DEVICE",
        ),
    ] = None
    fallback: Annotated[
        Literal["auto", "never"],
        _devices(
            "auto: if a candidate fails, use the next one; never: use only the first",
            more="With `never`, the server does not start if the first candidate fails at start-up. If it fails later, "
            "the model is not ready until it recovers",
        ),
    ] = "auto"
    isolate: Annotated[
        Literal["always", "accelerators", "never"],
        _devices(
            "What runs in an isolated process: all candidates, those on accelerators, or none",
            more="See [isolated processes](fallback.md#isolated-processes)",
        ),
    ] = "accelerators"
    isolated_memory: Annotated[
        int,
        _devices("Memory limit of an isolated process in bytes; 0: none", Unit.BYTES, ge=0),
    ] = 0
    standby: Annotated[
        Literal["auto", "warm", "cold"],
        _devices(
            "Keep the CPU loaded behind an accelerator: warm always, cold never, auto if memory allows"
        ),
    ] = "auto"
    watchdog: Annotated[
        float,
        _devices(
            "A call to an isolated process gets at least this many seconds before it counts as hung",
            SECONDS,
            gt=0,
        ),
    ] = 2.0
    open_timeout: Annotated[
        float,
        _devices("Time limit in seconds for opening a device", SECONDS, gt=0),
    ] = 180.0
    recheck: Annotated[
        float,
        _devices(
            "Seconds between checks of the golden samples (stored reference outputs); 0: off",
            SECONDS,
            ge=0,
        ),
    ] = 0.0
    verify: Annotated[bool, _devices("Add a golden sample to every batch and check it")] = False
    reopen: Annotated[
        float,
        _devices(
            "Seconds before the first retry of a failed device; later pauses grow",
            SECONDS,
            gt=0,
        ),
    ] = 1.0
    reopen_longest: Annotated[
        float,
        _devices("Longest pause in seconds before a failed device is tried again", SECONDS, gt=0),
    ] = 300.0
    inject: Annotated[
        tuple[str, ...],
        _devices(
            "For tests: simulate a fault, such as gpu:crash@100",
            metavar="FAULT",
            more="See [injected faults](fallback.md#injected-faults)",
        ),
    ] = ()
    instances: Annotated[
        int,
        _batching(
            "Maximum concurrent calls to a model; 0: chosen from cores and model",
            ge=0,
            more="See [instances and threads](#instances-and-threads)",
            pbtxt="instance_group.count",
        ),
    ] = 0
    threads: Annotated[
        int, _batching("Engine threads of one call; 0: chosen from cores and model", ge=0)
    ] = 0
    spin: Annotated[
        bool,
        _batching(
            "Engine threads busy-wait between calls: lower latency, busy cores",
            flag="--spin/--no-spin",
        ),
    ] = False
    batching: Annotated[
        bool,
        _batching(
            "Run queued requests as one batch; off: every request alone",
            flag="--batching/--no-batching",
            pbtxt="dynamic_batching",
        ),
    ] = True
    max_batch: Annotated[
        int,
        _batching(
            "Maximum rows in a batch; 0: the model's own limit", ge=0, pbtxt="max_batch_size"
        ),
    ] = 0
    preferred_batches: Annotated[
        tuple[int, ...],
        _batching(
            "A batch size to run when that many rows are queued; repeatable",
            ge=1,
            more="For [OpenVINO models with fixed shapes](#openvino-models-with-fixed-shapes)",
            flag="--preferred-batch",
            metavar="ROWS",
            pbtxt="dynamic_batching.preferred_batch_size",
        ),
    ] = ()
    batch_delay: Annotated[
        float,
        _batching(
            "Longest time in seconds to wait for a batch to fill",
            SECONDS,
            ge=0,
            le=10,
            pbtxt="dynamic_batching.max_queue_delay_microseconds",
        ),
    ] = 0.0
    queue_policy: Annotated[
        Literal["reject", "displace"],
        _batching(
            "When the queue is full: reject the new request, or displace a queued one of lower priority",
        ),
    ] = "reject"
    priority_levels: Annotated[
        int,
        _batching(
            "Number of priorities, 1 the highest",
            ge=1,
            le=1000,
            more="A request sets the parameter `priority`",
            pbtxt="dynamic_batching.priority_levels",
        ),
    ] = 1
    default_priority: Annotated[
        int,
        _batching(
            "Priority of a request that sets none",
            ge=1,
            pbtxt="dynamic_batching.default_priority_level",
        ),
    ] = 1
    priority: Annotated[
        tuple[PriorityTable, ...],
        _batching(
            "Settings of [one priority](#priorities)",
            flag=None,
            pbtxt="dynamic_batching.priority_queue_policy",
        ),
    ] = ()
    weight: Annotated[
        float,
        _batching("A model's share of the cores while several models are busy", gt=0, flag=None),
    ] = 1.0


@table
class ModelTable(PerModel, frozen=True, kw_only=True):
    """One `[[model]]` table: a bundle, or what differs for a model of the repository folder. What it leaves
    out is as for the server."""

    bundle: str | None = None
    name: str | None = None
