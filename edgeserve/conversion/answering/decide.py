"""The task of a model: asked for, given in a file, recognised, or open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from edgeserve.bundle import (
    TASKS,
    Classification,
    Detection,
    Embedding,
    Postprocess,
    Segmentation,
    Task,
    TaskKind,
)
from edgeserve.conversion.answering.boxes import detection
from edgeserve.conversion.answering.classes import classification
from edgeserve.conversion.answering.facts import Doubt, Finding, Fit, OutputFacts
from edgeserve.conversion.answering.maps import segmentation
from edgeserve.conversion.answering.vectors import embedding
from edgeserve.errors import InvalidInput, UsageError, did_you_mean
from edgeserve.postprocess import Postprocessor

# In this order: what has the most features of its own first.
_FINDERS: Final[dict[str, Callable[..., Finding]]] = {
    "detection": detection,
    "segmentation": segmentation,
    "classification": classification,
    "embedding": embedding,
}
_STRUCTS: Final = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
    "embedding": Embedding,
}
# The fields that name an output.
_OUTPUTS: Final = ("output", "boxes", "scores", "classes", "count")
# What a layout usually comes with, where a file says no more.
_USUAL: Final[dict[str, dict[str, object]]] = {
    "yolo": {"box": "cxcywh", "nms": True},
    "yolo_objectness": {"box": "cxcywh", "nms": True},
    "matrix": {"nms": True},
}
_PAGE: Final = "docs/postprocess.md shows a file for each kind"


class Decided(msgspec.Struct, frozen=True):
    """How outputs become an answer, and what the report says of it. None: they are the answer."""

    postprocess: Postprocess | None = None
    remarks: tuple[str, ...] = ()

    @property
    def kind(self) -> TaskKind | None:
        found: Any = None if self.postprocess is None else self.postprocess.__struct_config__.tag
        kind: TaskKind | None = found
        return kind


def decide(facts: OutputFacts, asked: TaskKind | None, given: Mapping[str, object]) -> Decided:
    """The postprocess of a model. `asked` is --task, `given` holds the fields of --postprocess, which override what is
    recognised.

    Raises UsageError for a task that does not fit the outputs, and for fields that are wrong.
    """
    kind = _kind(asked, given)
    found = _FINDERS[kind](facts, asked=True) if kind is not None else _recognised(facts)
    if given:
        return _from_file(facts, kind, given, found)
    if isinstance(found, Fit):
        try:
            return _checked(facts, found)
        except UsageError as error:
            if asked is not None:
                raise
            return Decided(remarks=(f"task not recognised: {error.message}: {error.cause}",))
    if asked is not None:
        raise UsageError(
            f"--task {asked}: the outputs do not fit",
            cause=found.remark if found is not None else _unfit(asked, facts),
            hint=f"--postprocess FILE.toml says which outputs are what; {_PAGE}",
        )
    return Decided(remarks=(f"task not recognised: {found.remark}",) if found is not None else ())


def _kind(asked: TaskKind | None, given: Mapping[str, object]) -> TaskKind | None:
    kind = given.get("kind", asked)
    if kind is not None and kind not in TASKS:
        raise UsageError(
            f"--postprocess: kind = {kind!r} is not known",
            hint=did_you_mean(str(kind), TASKS, f"kinds are {', '.join(TASKS)}"),
        )
    if asked is not None and kind != asked:
        raise UsageError(f"--task {asked} and --postprocess disagree: kind = {kind!r}")
    known: Any = kind
    found: TaskKind | None = known
    return found


def _recognised(facts: OutputFacts) -> Finding:
    fits, doubts = [], []
    for find in _FINDERS.values():
        found = find(facts, asked=False)
        if isinstance(found, Fit):
            fits.append(found)
        elif found is not None:
            doubts.append(found)
    kinds = [type(fit.how) for fit in fits]
    if kinds[:2] == [Segmentation, Classification]:
        first, second = (fit.how.describe() for fit in fits[:2])
        return Doubt(f"it may give {first}, or {second}: --task says so")
    return fits[0] if fits else doubts[0] if doubts else None


def _unfit(asked: str, facts: OutputFacts) -> str:
    """What is missing."""
    wanted = {
        "classification": "an output with one number for each class",
        "detection": "boxes, scores and classes; boxes and a score for each class; [n, 6]; [4 + classes, n]; or "
        "[n, 5 + classes]",
        "segmentation": "an output with a number for each class and pixel, or the class of each pixel, of an image "
        "that is the model's input",
        "embedding": "an output with one vector a row",
    }[asked]
    return f"it needs {wanted}; the model gives {facts.shapes()}"


def _from_file(
    facts: OutputFacts, kind: TaskKind | None, given: Mapping[str, object], found: Finding
) -> Decided:
    """The fields of a file, over what was recognised."""
    values: dict[str, Any] = {}
    because = "--postprocess says so"
    if isinstance(found, Fit):
        values = msgspec.to_builtins(found.how)
        kind = kind or values["kind"]
        if values["kind"] != kind or _is_another(values, given):
            values = {}
        else:
            because = f"{found.because}; --postprocess says the rest"
    if kind is None:
        raise UsageError(
            "--postprocess needs a kind", hint=f"--task, or kind = {' | '.join(TASKS)}; {_PAGE}"
        )
    struct = _STRUCTS[kind]
    fields = struct.__struct_fields__
    for name in given:
        if name not in (*fields, "kind"):
            raise UsageError(
                f"--postprocess: a {kind} has no field '{name}'",
                hint=did_you_mean(name, fields, f"its fields are {', '.join(fields)}"),
            )
    usual = _USUAL.get(str(given.get("layout")), {}) if kind == "detection" else {}
    values |= usual | dict(given) | {"kind": kind}
    main = "output" if "output" in fields else "boxes"
    if main not in values and len(facts.names) == 1:
        values[main] = facts.names[0]
    for name in _OUTPUTS:
        called = values.get(name)
        if isinstance(called, str) and called not in facts.names:
            raise UsageError(
                f"--postprocess: the model has no output '{called}' ({name})",
                hint=did_you_mean(called, facts.names, f"its outputs are {', '.join(facts.names)}"),
            )
    try:
        how: Postprocess = msgspec.convert(values, struct)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"--postprocess does not describe a {kind}", cause=str(error), hint=_PAGE
        ) from None
    return _checked(facts, Fit(how, because))


def _outputs(how: Postprocess) -> list[str]:
    """The outputs that an answer is made of."""
    named = (getattr(how, field, None) for field in _OUTPUTS)
    return [name for name in named if isinstance(name, str)]


def _is_another(values: Mapping[str, Any], given: Mapping[str, object]) -> bool:
    """Whether the file names another output or layout: nothing of what was recognised is then of it."""
    return any(
        name in given and given[name] != values.get(name) for name in ("output", "boxes", "layout")
    )


def _checked(facts: OutputFacts, fit: Fit) -> Decided:
    """What was found, tried on what the source answered. Raises UsageError if it does not fit."""
    scales = {n: s for n, s in facts.scales.items() if n in _outputs(fit.how)}
    how = msgspec.structs.replace(fit.how, scales=fit.how.scales or scales)
    kind = how.__struct_config__.tag
    names = facts.labels or ()
    made = Postprocessor(Task("generic", postprocess=how), facts.interface, {}, names)
    try:
        for answers in facts.answers:
            made.answers(answers, 1)
    except (InvalidInput, IndexError, ValueError) as error:
        raise UsageError(
            f"the outputs do not fit a {kind}: {how.describe()}",
            cause=f"{error}; the model gives {facts.shapes()}",
            hint=_PAGE,
        ) from None
    remarks = [f"task {kind}: {how.describe()} ({fit.because})", *fit.notes]
    if facts.labels is None and not isinstance(how, Embedding):
        remarks.append("answers have the numbers of classes: --labels FILE gives them names")
    return Decided(how, tuple(remarks))
