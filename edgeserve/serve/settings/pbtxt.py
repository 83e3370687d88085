"""What a Triton repository's `config.pbtxt` says that matters here: batching, queues, instances, versions,
labels. What it says beyond that is named, so that it can be told.

Source: triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import UNSET

from edgeserve.errors import UsageError
from edgeserve.serve.engine import OnTimeout
from edgeserve.serve.settings import textproto
from edgeserve.serve.settings.model import PrioritySettings
from edgeserve.serve.settings.textproto import Message
from edgeserve.serve.settings.versions import All, Latest, Specific, VersionPolicy

FILE_NAME: Final = "config.pbtxt"
# Read, or true of every bundle by its own manifest.
_UNDERSTOOD: Final = {
    "name", "platform", "backend", "max_batch_size", "input", "output", "dynamic_batching",
    "instance_group", "version_policy", "default_model_filename", "runtime",
}  # fmt: skip
_BATCHING: Final = {
    "preferred_batch_size", "max_queue_delay_microseconds", "default_queue_policy",
    "priority_levels", "default_priority_level", "priority_queue_policy",
}  # fmt: skip
_TENSOR: Final = {"name", "data_type", "dims", "label_filename"}
_QUEUE: Final = {
    "default_timeout_microseconds", "allow_timeout_override", "max_queue_size", "timeout_action",
}  # fmt: skip
_ACTIONS: Final[dict[object, OnTimeout]] = {
    "REJECT": "reject", 0: "reject", "DELAY": "delay", 1: "delay",
}  # fmt: skip


class TritonConfig(msgspec.Struct, frozen=True):
    """None: the file does not say. `labels` maps an output to its file; `ignored` are the fields that
    have no effect here."""

    name: str | None = None
    max_batch: int | None = None
    batching: bool | None = None
    preferred: tuple[int, ...] = ()
    delay_s: float | None = None
    priority_levels: int | None = None
    default_priority: int | None = None
    queue: int | None = None
    timeout_s: float | None = None
    own_timeouts: bool | None = None
    timeout_action: OnTimeout | None = None
    priority: tuple[PrioritySettings, ...] = ()
    instances: int | None = None
    versions: VersionPolicy | None = None
    labels: dict[str, str] = {}
    ignored: tuple[str, ...] = ()


def read_config(file: Path) -> TritonConfig:
    """Raises UsageError naming the file and the field."""
    try:
        return config_of(textproto.read(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read", cause=str(error)) from None
    except UsageError as error:
        raise UsageError(f"{file} cannot be used", cause=str(error)) from None


def config_of(message: Message) -> TritonConfig:
    """Raises UsageError naming the field."""
    batching = message.message("dynamic_batching")
    max_batch = message.integer("max_batch_size")
    if max_batch is not None and max_batch < 0:
        raise UsageError(f"max_batch_size: expected 0 or more, got {max_batch}")
    ignored = [n for n in message.names() if n not in _UNDERSTOOD]
    inner = batching or Message()
    ignored += [f"dynamic_batching.{n}" for n in inner.names() if n not in _BATCHING]
    ignored += [*_ineffective(message, "input"), *_ineffective(message, "output")]
    queue = _Queue(inner.message("default_queue_policy"), "default_queue_policy")
    priority, ineffective = _priorities(inner)
    ignored += (*queue.ignored, *ineffective)
    delay = inner.integer("max_queue_delay_microseconds")
    return TritonConfig(
        name=message.text("name"),
        max_batch=max_batch,
        # Triton puts requests together only where dynamic_batching is there.
        batching=batching is not None,
        preferred=_positive(inner, "preferred_batch_size"),
        delay_s=None if delay is None else delay / 1e6,
        priority_levels=inner.integer("priority_levels"),
        default_priority=inner.integer("default_priority_level"),
        queue=queue.size or None,
        timeout_s=queue.timeout_s,
        own_timeouts=None if queue.timeout_s is None else queue.override,
        timeout_action=queue.action,
        priority=priority,
        instances=_instances(message),
        versions=_versions(message.message("version_policy")),
        labels=_labels(message),
        ignored=tuple(ignored),
    )


class _Queue:
    """A ModelQueuePolicy. None: it does not say."""

    def __init__(self, message: Message | None, name: str) -> None:
        fields = message or Message()
        timeout = fields.integer("default_timeout_microseconds")
        actions = fields.all("timeout_action")
        self.size = fields.integer("max_queue_size")
        self.timeout_s = None if timeout is None else timeout / 1e6
        self.override = bool(fields.flag("allow_timeout_override"))
        self.action: OnTimeout | None = None
        if actions:
            if isinstance(actions[-1], Message) or actions[-1] not in _ACTIONS:
                raise UsageError(
                    f"timeout_action: expected REJECT or DELAY, got {actions[-1]!r:.40}"
                )
            self.action = _ACTIONS[actions[-1]]
        self.ignored = [f"{name}.{n}" for n in fields.names() if n not in _QUEUE]


def _priorities(batching: Message) -> tuple[tuple[PrioritySettings, ...], list[str]]:
    """The levels with a policy of their own, which holds instead of the default one altogether; and what has
    no effect, as policies of levels that there are not."""
    levels = batching.integer("priority_levels") or 0
    found: dict[int, PrioritySettings] = {}
    ignored = []
    for entry in batching.all("priority_queue_policy"):
        if not isinstance(entry, Message):
            raise UsageError(f"priority_queue_policy: expected messages, got {entry!r:.40}")
        level = entry.integer("key") or 0
        name = f"priority_queue_policy[{level}]"
        if not 1 <= level <= levels:
            ignored.append(name)
            continue
        own = _Queue(entry.message("value"), name)
        ignored += own.ignored
        found[level] = PrioritySettings(
            level, own.size or UNSET, own.timeout_s or 0.0, own.override, own.action or "reject"
        )
    return tuple(found.values()), ignored


def _positive(message: Message, name: str) -> tuple[int, ...]:
    values = message.integers(name)
    if any(v < 1 for v in values):
        raise UsageError(f"{name}: expected sizes of 1 or more, got {list(values)}")
    return values


def _instances(message: Message) -> int | None:
    groups = message.all("instance_group")
    counts = []
    for group in groups:
        if not isinstance(group, Message):
            raise UsageError(f"instance_group: expected messages, got {group!r:.40}")
        count = group.integer("count")
        counts.append(1 if count is None else count)
    if any(c < 1 for c in counts):
        raise UsageError(f"instance_group.count: expected 1 or more, got {counts}")
    return sum(counts) if counts else None


def _versions(policy: Message | None) -> VersionPolicy | None:
    if policy is None:
        return None
    specific = policy.message("specific")
    if specific is not None:
        return VersionPolicy(specific=Specific(_positive(specific, "versions")))
    if policy.message("all") is not None:
        return VersionPolicy(all=All())
    latest = policy.message("latest")
    count = latest.integer("num_versions") if latest is not None else None
    if count is not None and count < 1:
        raise UsageError(f"num_versions: expected 1 or more, got {count}")
    return VersionPolicy(latest=Latest(count or 1))


def _ineffective(message: Message, kind: str) -> list[str]:
    """What inputs or outputs say that the bundle does not: `reshape`, `optional` and the like."""
    entries = [entry for entry in message.all(kind) if isinstance(entry, Message)]
    return [
        f"{kind}[{entry.text('name')}].{field}"
        for entry in entries
        for field in entry.names()
        if field not in _TENSOR
    ]


def _labels(message: Message) -> dict[str, str]:
    labels = {}
    for output in message.all("output"):
        if not isinstance(output, Message):
            raise UsageError(f"output: expected messages, got {output!r:.40}")
        name, file = output.text("name"), output.text("label_filename")
        if name and file:
            labels[name] = file
    return labels
