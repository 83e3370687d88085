"""Which layout the outputs of a detector have, of those that are common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from edgeserve.bundle import Detection
from edgeserve.conversion.answering.facts import (
    BACKGROUND,
    Doubt,
    Finding,
    Fit,
    OutputFacts,
    sums_to_one,
    whole,
    wide,
    within,
)
from edgeserve.tensors import Array

_SAYS: Final = "--postprocess says what they are"
# Boxes of more than this are pixels, not shares: some stand over the edge.
_SHARE: Final = 2.0
# Pixels of the input that one cell of a YOLO's grids covers, and boxes a cell.
_GRIDS: Final = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_ANCHORS: Final = (1, 3)
# Heads with NMS inside find no more.
_MOST_ROWS: Final = 2_000


def detection(facts: OutputFacts, *, asked: bool) -> Finding:
    """Boxes, if the outputs have the shapes and values of one of the common layouts."""
    layouts: tuple[Callable[[OutputFacts, bool], Finding], ...] = (_lists, _matrix, _rows, _yolo)
    doubts = []
    for layout in layouts:
        found = layout(facts, asked)
        if isinstance(found, Fit):
            return _numbered(found, facts)
        if found is not None:
            doubts.append(found)
    return doubts[0] if doubts else None


def _numbered(fit: Fit, facts: OutputFacts) -> Fit:
    """With the class that the first label names."""
    how, labels = fit.how, facts.labels
    assert isinstance(how, Detection)
    if labels is None and how.layout == "lists":
        first = 0  # the numbers as the model gives them
    elif labels and labels[0].strip().lower() in BACKGROUND:
        # Label files of TFLite name the background, which its head does not count.
        first = how.first_class - 1
    else:
        return fit
    return msgspec.structs.replace(fit, how=msgspec.structs.replace(how, first_class=first))


# NMS inside


def _lists(facts: OutputFacts, asked: bool) -> Finding:
    """Boxes `[n, 4]`, scores `[n]`, classes `[n]`, and maybe their count."""
    numbers = [n for n in facts.names if facts.is_number(n)]
    boxes = [n for n in numbers if _is_boxes(facts, n)]
    boxes = _called(boxes, "detection_boxes") or boxes
    if len(boxes) != 1:
        return None
    lists = {n: rows for n in numbers if (rows := _list(facts, n, boxes[0])) is not None}
    counts = [
        n for n in numbers if n not in lists and n not in boxes and _is_count(facts, n, boxes[0])
    ]
    # TensorFlow's detectors give other lists, too.
    usual = [*_called(list(lists), "detection_scores"), *_called(list(lists), "detection_classes")]
    lists = {n: r for n, r in lists.items() if n in usual} or lists
    if len(lists) != 2:
        return None
    pair = _scores_and_classes(facts, lists)
    seen = f"outputs {facts.shapes()} look like boxes, scores and classes"
    if pair is None:
        return Doubt(f"{seen}, but not which are the scores: {_SAYS} (layout = \"lists\")")  # fmt: skip
    scores, classes = pair
    named = boxes[0].startswith("detection_")  # as TensorFlow's object detection does
    tensorflow = named or (bool(counts) and not facts.has_graph)
    # torchvision's detectors take no batch; they count the background as class 0.
    torch = not counts and len(facts.interface.output(boxes[0]).shape) == 2
    unit = _unit(facts.squeezed(boxes[0], 2)) or (
        "shares" if tensorflow else "pixels" if torch else None
    )
    if unit is None:
        return Doubt(
            f"{seen}, but no sample shows whether they are in pixels: {_SAYS} (unit = …), or --calibrate with "
            "images that hold something"
        )
    how = Detection(
        "lists", boxes[0], scores, classes, counts[0] if counts else None,
        box="yxyx" if tensorflow else "xyxy", unit=unit, first_class=1 if torch or named else 0,
    )  # fmt: skip
    return Fit(how, "boxes, scores and classes are outputs of their own")


def _called(names: list[str], word: str) -> list[str]:
    return [n for n in names if n.rpartition("/")[2].partition(":")[0].startswith(word)]


def _is_boxes(facts: OutputFacts, name: str) -> bool:
    rows = facts.squeezed(name, 2) if facts.is_float(name) else None
    if rows is None or any(r.shape[1] != 4 for r in rows) or _is_vectors(facts, name):
        return False
    shape = facts.interface.output(name).shape
    return len(shape) < 2 or shape[-2] != 1


def _is_vectors(facts: OutputFacts, name: str) -> bool:
    """Whether rows are `[4]`, not `[n, 4]`: a batch of four numbers each."""
    return facts.interface.max_batch > 0 and len(facts.interface.output(name).shape) == 2


def _list(facts: OutputFacts, name: str, boxes: str) -> list[Array] | None:
    """The rows of an output that has a number for each box."""
    rows, wanted = facts.squeezed(name, 1), facts.squeezed(boxes, 2)
    if rows is None or wanted is None:
        return None
    fits = all(len(r) == len(b) for r, b in zip(rows, wanted, strict=True))
    lone = all(len(b) == 1 for b in wanted) and "num" in name.lower()
    return rows if fits and not lone else None


def _is_count(facts: OutputFacts, name: str, boxes: str) -> bool:
    rows, wanted = facts.rows(name), facts.squeezed(boxes, 2) or []
    return all(r.size == 1 for r in rows) and all(
        float(r.reshape(-1)[0]) <= len(b) for r, b in zip(rows, wanted, strict=True)
    )


def _scores_and_classes(
    facts: OutputFacts, lists: dict[str, list[Array]]
) -> tuple[str, str] | None:
    """Which of two outputs are scores, by type, by name, by values."""
    a, b = lists
    floats = [n for n in (a, b) if facts.is_float(n)]
    if len(floats) == 1:
        return floats[0], b if floats[0] == a else a
    if len(floats) != 2:
        return None
    for first, other in ((a, b), (b, a)):
        if "score" in first.lower() and "score" not in other.lower():
            return first, other
        if first.startswith("TFLite_Detection_PostProcess") and first.endswith(":2"):
            return first, other
    likely = [n for n in (a, b) if within(wide(lists[n]), 0, 1) and not whole(wide(lists[n]))]
    classes = [n for n in (a, b) if whole(wide(lists[n]))]
    return (likely[0], classes[0]) if len(likely) == len(classes) == 1 else None


def _unit(boxes: list[Array] | None) -> Literal["pixels", "shares"] | None:
    """The unit of the boxes, told by the largest number in them; None if there are no boxes."""
    numbers = [r for r in wide(boxes or ()) if r.size]
    if not numbers or not any(bool(r.any()) for r in numbers):
        return None
    return "pixels" if max(float(r.max()) for r in numbers) > _SHARE else "shares"


def _rows(facts: OutputFacts, asked: bool) -> Finding:
    """`[n, 6]`: a box, its score, its class, as YOLOv10 has them."""
    for name in facts.names:
        rows = facts.squeezed(name, 2) if facts.is_float(name) else None
        if rows is None or _is_vectors(facts, name) or any(r.shape[1] != 6 for r in rows):
            continue
        numbers = wide(rows)
        if any(len(r) > _MOST_ROWS for r in numbers):
            continue
        corners, scores = [r[:, :4] for r in numbers], [r[:, 4] for r in numbers]
        good = within(scores, 0, 1) and whole([r[:, 5] for r in numbers]) and _are_corners(corners)
        unit = _unit(corners)
        if good and unit is not None and (facts.image_size is not None or asked):
            return Fit(
                Detection("rows", name, unit=unit),
                f"{facts.shape(name)} holds x0, y0, x1, y1, score and class",
            )
        if good and (facts.image_size is not None or asked):
            return Doubt(
                f"output {facts.shape(name)} may hold boxes, scores and classes, but no sample has any: {_SAYS} "
                '(layout = "rows", unit = …)'
            )
    return None


def _are_corners(boxes: list[Array]) -> bool:
    return all(bool((b[:, 2:] >= b[:, :2]).all()) for b in boxes)


def _are_centres(boxes: list[Array]) -> bool:
    return all(bool((b[:, 2:] >= 0).all()) for b in boxes) and any(bool(b.any()) for b in boxes)


# boxes of all places


def _matrix(facts: OutputFacts, asked: bool) -> Finding:
    """Boxes `[n, 4]` and scores `[n, classes]`."""
    pairs = [
        (boxes, scores)
        for boxes in facts.names
        if _is_boxes(facts, boxes)
        for scores in facts.names
        if scores != boxes and _scores_each(facts, scores, boxes)
    ]
    if len(pairs) == 2:  # of four classes: which of them are scores, their values say
        pairs = [(b, s) for b, s in pairs if within(wide(facts.arrays(s)), 0, 1)]
    if len(pairs) != 1:
        return None
    boxes, scores = pairs[0]
    corners, each = wide(facts.squeezed(boxes, 2) or ()), wide(facts.squeezed(scores, 2) or ())
    seen = (
        f"outputs {facts.shape(boxes)} and {facts.shape(scores)} look like boxes and their scores"
    )
    unit = _unit(corners)
    box = "xyxy" if _are_corners(corners) else "cxcywh" if _are_centres(corners) else None
    if unit is None or box is None or not within(each, 0, 1):
        return Doubt(f'{seen}, in a form that is not known: {_SAYS} (layout = "matrix")')
    classes = each[0].shape[1]
    background = classes > 1 and all(sums_to_one(r) for r in each)
    how = Detection(
        "matrix", boxes, scores, box="xyxy" if box == "xyxy" else "cxcywh", unit=unit, nms=True,
        first_class=1 if background else 0,
    )  # fmt: skip
    named = facts.labels is None or len(facts.labels) in (
        (classes, classes - 1) if background else (classes,)
    )
    if not named:
        return Doubt(f"{seen}, but there are {len(facts.labels or ())} labels: {_SAYS}")
    notes = ("class 0 is taken as the background: each row of scores sums to one",)
    if background and facts.labels is not None and len(facts.labels) == classes:
        # The labels name it, whatever they call it.
        how = msgspec.structs.replace(how, first_class=1)
        if facts.labels[0].strip().lower() not in BACKGROUND:
            return Doubt(f"{seen}, with or without a background: {_SAYS} (first_class = …)")
    return Fit(how, "boxes and a score for each class are outputs", notes if background else ())


def _scores_each(facts: OutputFacts, name: str, boxes: str) -> bool:
    if not facts.is_float(name):
        return False
    spec = facts.interface.output(name)
    rows, wanted = facts.squeezed(name, 2), facts.squeezed(boxes, 2)
    if rows is None or wanted is None or len(spec.shape) < 2:
        return False
    return all(len(r) == len(b) and len(r) > 1 for r, b in zip(rows, wanted, strict=True))


def _yolo(facts: OutputFacts, asked: bool) -> Finding:
    """`[4 + classes, n]` and `[n, 5 + classes]`, by labels, by the number of boxes, and by values."""
    names = [n for n in facts.names if facts.is_float(n) and not _is_vectors(facts, n)]
    heads = [n for n in names if (r := facts.squeezed(n, 2)) is not None and min(r[0].shape) > 4]
    # The YOLOs that also give the maps they are made of: [1, 3, h, w, 5 + classes].
    if len(heads) != 1 or any(facts.arrays(n)[0].ndim != 5 for n in names if n not in heads):
        return None
    (name,) = heads
    rows = wide(facts.squeezed(name, 2) or ())
    anchors = _anchors(facts, max(rows[0].shape))
    if anchors is None and not asked and facts.labels is None:
        return None
    fit = _head(facts, name, rows, anchors)
    if fit is not None or (anchors is None and not asked):
        return fit
    named = f"{len(facts.labels)} classes and " if facts.labels is not None else ""
    return Doubt(
        f"output {facts.shape(name)} looks like a YOLO's boxes, but not like [4 + classes, boxes] or "
        f"[boxes, 5 + classes] with {named}scores from 0 to 1: {_SAYS} "
        '(layout = "yolo" or "yolo_objectness")'
    )


def _anchors(facts: OutputFacts, boxes: int) -> int | None:
    """How many boxes each cell of a YOLO's grids has, if it is one's number of boxes for the image's size."""
    size = facts.image_size
    if size is None:
        return None
    for grids in _GRIDS:
        cells = sum(-(-size[0] // step) * -(-size[1] // step) for step in grids)
        for anchors in _ANCHORS:
            if boxes == anchors * cells:
                return anchors
    return None


def _head(facts: OutputFacts, name: str, rows: list[Array], anchors: int | None) -> Fit | None:
    """The layout, if shape, labels and values allow it."""
    across = rows[0].shape[0] > rows[0].shape[1]  # a row for each box
    layout: Literal["yolo", "yolo_objectness"] = "yolo_objectness" if across else "yolo"
    table = rows if across else [r.T for r in rows]
    classes = table[0].shape[1] - (5 if across else 4)
    if facts.labels is not None:
        fits = len(facts.labels) == max(classes, 1)
    else:  # [n, 4 + classes] looks the same; anchors are of those with a score for each box
        fits = not across or anchors == 3
    boxes, scores = [t[:, :4] for t in table], [t[:, 4:] for t in table]
    unit = _unit(boxes)
    if not fits or unit is None or not _are_centres(boxes) or not within(scores, 0, 1):
        return None
    many = "1 class" if classes <= 1 else f"{classes} classes"
    return Fit(
        Detection(layout, name, box="cxcywh", unit=unit, nms=True),
        f"{facts.shape(name)} is the head of a YOLO with {many}",
    )
