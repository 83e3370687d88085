"""What a Triton repository's `config.pbtxt` says about a model, as settings. Other fields are listed.

A setting names its field of Triton's itself (`pbtxt=`). Source: triton-inference-server/common,
protobuf/model_config.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.errors import UsageError
from edgeserve.serve.settings import textproto
from edgeserve.serve.settings.model import PerLevel, PerModel, PriorityTable
from edgeserve.serve.settings.setting import Declared, Unit, declared
from edgeserve.serve.settings.textproto import Message
from edgeserve.serve.settings.versions import All, Latest, Specific, VersionPolicy

FILE_NAME: Final = "config.pbtxt"
_BATCHING: Final = "dynamic_batching"
_POLICY: Final = "default_queue_policy"
_POLICIES: Final = "priority_queue_policy"
_QUEUE: Final = {known.setting.pbtxt or "": known for known in declared(PerLevel).values()}
_FIELDS: Final = {
    known.setting.pbtxt: known
    for name, known in declared(PerModel).items()
    if known.setting.pbtxt is not None and name not in declared(PerLevel)
}
_OF_BATCHING: Final = {
    field.partition(".")[2] for field in _FIELDS if field.startswith(f"{_BATCHING}.")
} | {_POLICY}
# Read, or true of every bundle by its own manifest.
_UNDERSTOOD: Final = {field.partition(".")[0] for field in _FIELDS} | {
    "name", "platform", "backend", "input", "output", "default_model_filename", "runtime",
}  # fmt: skip
_TENSOR: Final = {"name", "data_type", "dims", "label_filename"}


class TritonConfig(msgspec.Struct, frozen=True):
    """`settings` are those that the file sets, by name. `labels` maps an output to its file; `ignored` are the
    fields that have no effect here."""

    name: str | None = None
    settings: dict[str, Any] = {}
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
    batching = message.message(_BATCHING)
    inner = batching or Message()
    policy = inner.message(_POLICY) or Message()
    priority, ineffective = _priorities(inner)
    own = {
        known.name: _value(inner if field.startswith(_BATCHING) else message, field, known)
        for field, known in _FIELDS.items()
        if known.name not in ("batching", "instances", "priority", "versions")
    }
    own |= _queue_policy(policy)
    # It is about the default timeout; without one a request names its own.
    own["own_timeouts"] = None if own["timeout"] is None else bool(own["own_timeouts"])
    # Triton puts requests together only where dynamic_batching is there.
    own["batching"] = batching is not None and message.integer("max_batch_size") != 0
    own["instances"] = _instances(message)
    own["priority"] = priority or None
    return TritonConfig(
        name=message.text("name"),
        settings={name: value for name, value in own.items() if value is not None},
        versions=version_policy(message.message("version_policy")),
        labels=_labels(message),
        ignored=(
            *(n for n in message.names() if n not in _UNDERSTOOD),
            *(f"{_BATCHING}.{n}" for n in inner.names() if n not in _OF_BATCHING),
            *_ineffective(message, "input"),
            *_ineffective(message, "output"),
            *_unread(policy, _POLICY),
            *ineffective,
        ),
    )


def _value(message: Message, path: str, known: Declared) -> Any:
    """What a field sets, in the setting's type and unit. None: nothing, as a count of 0 does."""
    field = path.rpartition(".")[2]
    if known.choices:
        return _choice(message, field, known.choices)
    if known.type is bool:
        return message.flag(field)
    given: tuple[float, ...] = message.integers(field)
    if known.setting.unit is Unit.SECONDS:
        given = tuple(microseconds / 1e6 for microseconds in given)
    several = known.type not in (int, float)
    if known.type is int:
        given = tuple(count for count in given[-1:] if count)
    for number in given:
        if known.setting.problem(field, number):
            raise UsageError(f"{field}: expected {known.setting.range}, got {number:g}")
    return (given if several else given[-1]) if given else None


def _choice(message: Message, field: str, choices: tuple[str, ...]) -> str | None:
    """A value of an enum, by name or number, as the setting calls it."""
    given = message.all(field)
    if not given:
        return None
    value = given[-1]
    names = [choice.upper() for choice in choices]
    if value in names:
        return choices[names.index(str(value))]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return choices[value]
    raise UsageError(f"{field}: expected {' or '.join(names)}, got {value!r:.40}")


def _queue_policy(policy: Message) -> dict[str, Any]:
    """The settings of a ModelQueuePolicy. None: it does not say."""
    return {known.name: _value(policy, field, known) for field, known in _QUEUE.items()}


def _unread(policy: Message, name: str) -> list[str]:
    return [f"{name}.{n}" for n in policy.names() if n not in _QUEUE]


def _priorities(batching: Message) -> tuple[tuple[PriorityTable, ...], list[str]]:
    """The levels with a policy of their own, which holds instead of the default one altogether; and what has
    no effect, as policies of levels that there are not."""
    levels = batching.integer("priority_levels") or 0
    found: dict[int, PriorityTable] = {}
    ignored = []
    for entry in batching.all(_POLICIES):
        if not isinstance(entry, Message):
            raise UsageError(f"{_POLICIES}: expected messages, got {entry!r:.40}")
        level = entry.integer("key") or 0
        name = f"{_POLICIES}[{level}]"
        if not 1 <= level <= levels:
            ignored.append(name)
            continue
        policy = entry.message("value") or Message()
        ignored += _unread(policy, name)
        own = {f: v for f, v in _queue_policy(policy).items() if v is not None}
        # What protocol buffers leave out is zero: no timeout, no override, the first action.
        zero: dict[str, Any] = {"timeout": 0.0, "own_timeouts": False, "timeout_action": "reject"}
        found[level] = PriorityTable(level=level, **(zero | own))
    return tuple(found.values()), ignored


def _instances(message: Message) -> int | None:
    counts = []
    for group in message.all("instance_group"):
        if not isinstance(group, Message):
            raise UsageError(f"instance_group: expected messages, got {group!r:.40}")
        count = group.integer("count")
        counts.append(1 if count is None else count)
    if any(c < 1 for c in counts):
        raise UsageError(f"instance_group.count: expected 1 or more, got {counts}")
    return sum(counts) if counts else None


def version_policy(policy: Message | None) -> VersionPolicy | None:
    """Which versions serve; TF Serving's message has the same fields. Raises UsageError."""
    if policy is None:
        return None
    specific = policy.message("specific")
    if specific is not None:
        versions = specific.integers("versions")
        if any(v < 1 for v in versions):
            raise UsageError(f"versions: expected numbers of 1 or more, got {list(versions)}")
        return VersionPolicy(specific=Specific(versions))
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
