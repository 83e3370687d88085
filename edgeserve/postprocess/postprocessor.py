"""Makes answers of one model's outputs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeserve.bundle import (
    Classification,
    Detection,
    Embedding,
    Postprocess,
    Scale,
    Segmentation,
    Task,
)
from edgeserve.errors import InvalidInput
from edgeserve.postprocess.answers import Answer, AnswerOptions, EmbeddingAnswer, TensorsAnswer
from edgeserve.postprocess.classify import classes, looks_like_probabilities
from edgeserve.postprocess.detect import boxes
from edgeserve.postprocess.rows import numbers, row_of
from edgeserve.postprocess.segment import mask
from edgeserve.preprocess import Frame
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, numbers_of_bf16


class Postprocessor:
    """Answers of one model. May be used from several threads. A bundle that stores no postprocess gets classes if it has
    labels, otherwise its outputs as they are."""

    def __init__(
        self,
        task: Task,
        interface: Interface,
        labels: Mapping[str, Sequence[str]],
        names: Sequence[str] = (),
    ) -> None:
        """`labels` are class names by output, `names` those of the bundle, whichever output they belong to. Labels of
        other outputs have no effect."""
        known = {spec.name for spec in interface.outputs}
        labels = {output: own for output, own in labels.items() if output in known}
        self._interface = interface
        self._labels = labels
        self._names = names
        self._size = _input_size(task, interface)
        self._raw = [s.name for s in interface.outputs if s.dtype == "BF16"]
        self._guesses = False  # whether each row shows whether it holds logits
        self.how: Postprocess | None = task.postprocess
        if self.how is None and len(labels) == 1:
            ((output, classes),) = labels.items()
            if _are_scores(interface.output(output), len(classes)):
                self.how = Classification(output)
                self._guesses = True

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that answers are made of."""
        how = self.how
        if how is None:
            return tuple(spec.name for spec in self._interface.outputs)
        if isinstance(how, Detection):
            names = (how.boxes, how.scores, how.classes, how.count)
            return tuple(dict.fromkeys(name for name in names if name is not None))
        return (how.output,)

    def answers(
        self,
        outputs: Tensors,
        rows: int,
        frames: Sequence[Frame | None] = (),
        options: AnswerOptions | None = None,
    ) -> list[Answer]:
        """One answer for each of the `rows` of a request. `frames` say where images are in the inputs, if images were
        sent. Raises InvalidInput for outputs that are not as the bundle says."""
        wanted = options or AnswerOptions()
        raw = {n: numbers_of_bf16(outputs[n]) for n in self._raw if n in outputs}
        if raw:
            outputs = {**outputs, **raw}
        scales = {} if self.how is None else self.how.scales
        if scales:
            outputs = {n: _scaled(a, scales.get(n)) for n, a in outputs.items()}
        known = [*frames, *[None] * (rows - len(frames))]
        return [self._answer(outputs, row, known[row], wanted) for row in range(rows)]

    def _answer(
        self, outputs: Tensors, row: int, frame: Frame | None, options: AnswerOptions
    ) -> Answer:
        how = self.how
        batched = self._interface.max_batch > 0
        if how is None:
            return TensorsAnswer(
                {name: listed(array[row] if batched else array) for name, array in outputs.items()}
            )
        if isinstance(how, Detection):
            return boxes(
                outputs, row, how, self._labels_of(how.boxes), frame, options,
                batched=batched, size=self._size,
            )  # fmt: skip
        array = outputs[how.output]
        labels = self._labels_of(how.output)
        if isinstance(how, Classification):
            scores = self._flat(array, row, how.output)
            if self._guesses and not looks_like_probabilities(scores):
                how = Classification(how.output, "softmax")
            return classes(scores, how, labels, options)
        if isinstance(how, Segmentation):
            rank = 2 if how.layout == "index" else 3
            scores = row_of(array, row, batched=batched, rank=rank, name=how.output)
            return mask(scores, how, labels, frame, options)
        return _embedding(numbers(self._flat(array, row, how.output)), how)

    def _flat(self, array: Array, row: int, output: str) -> Array:
        """One row as a vector, whatever axes of 1 it has. Raises InvalidInput where rows were sent together to a model
        that does not keep them apart."""
        if self._interface.max_batch > 0:
            return np.atleast_1d(array[row]).reshape(-1)
        shape = self._interface.output(output).shape
        if array.ndim > 1 and len(array) != 1 and isinstance(shape[0], str):
            raise InvalidInput(
                f"output '{output}' has {len(array)} rows: this model answers one row a request"
            )
        return array.reshape(-1)

    def _labels_of(self, output: str) -> Sequence[str]:
        return self._labels.get(output, self._names)


def _scaled(array: Array, scale: Scale | None) -> Array:
    if scale is None:
        return array
    return np.multiply(array.astype(np.float32) - scale.zero, scale.scale, dtype=np.float32)


def _are_scores(spec: TensorSpec, classes: int) -> bool:
    """Whether a row of an output can be a number for each of the classes, or the one for the second of two."""
    row = spec.shape[1:] if len(spec.shape) > 1 else spec.shape
    longer = [d for d in row if d != 1]
    return len(longer) <= 1 and (not longer or isinstance(longer[0], str) or longer[0] == classes)


def _embedding(vector: Array, how: Embedding) -> EmbeddingAnswer:
    if how.normalize:
        with np.errstate(invalid="ignore"):  # of infinite values
            largest = float(np.abs(vector).max(initial=0.0))
            scaled = (
                vector / largest if largest else vector
            )  # squares of large numbers are infinite
            length = float(np.sqrt((scaled * scaled).sum()))
            vector = scaled / length if length else scaled
    return EmbeddingAnswer(vector.tolist())


def _input_size(task: Task, interface: Interface) -> tuple[int, int]:
    """The width and height of the input that boxes are shares of; 1 if that is not known."""
    if task.preprocess is not None:
        return task.preprocess.width, task.preprocess.height
    for spec in interface.inputs:
        if len(spec.shape) == 4:
            last = spec.shape[1:3] if spec.shape[3] in (1, 3) else spec.shape[2:]
            height, width = last
            if isinstance(height, int) and isinstance(width, int):
                return width, height
    return 1, 1


def listed(array: Array) -> Any:
    """An array as nested lists; bytes as text, or as base64 where they are not text."""
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        texts[place] = _text(value)
    return texts.tolist()


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
