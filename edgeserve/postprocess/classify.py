"""Class scores to the best classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeserve.bundle import Classification
from edgeserve.postprocess.answers import AnswerOptions, ClassesAnswer, ScoredClass
from edgeserve.postprocess.rows import label_of, numbers, sigmoid, softmax
from edgeserve.tensors import Array
from edgeserve.values import best_first


def classes(
    scores: Array, how: Classification, labels: Sequence[str], options: AnswerOptions
) -> ClassesAnswer:
    """The best classes of one row of scores `[classes]`. A score that is not a number is none."""
    values = probabilities(scores, how)
    threshold = how.threshold if options.threshold is None else options.threshold
    best = best_first(values[None])[0][: how.top_k if options.top_k is None else options.top_k]
    return ClassesAnswer(
        tuple(
            ScoredClass(label_of(i, labels), float(values[i]), i)
            for i in best.tolist()
            if np.isfinite(values[i]) and (values[i] >= threshold or not threshold)
        )
    )


def probabilities(scores: Array, how: Classification) -> Array:
    """Of all classes of a row, in FP64."""
    values = numbers(scores)
    if how.activation == "softmax" and values.size > 1:
        return softmax(values)
    if how.activation != "none":
        values = sigmoid(values)
    if values.size == 1:  # the second class of two
        return np.array([1.0 - values[0], values[0]])
    return values


def looks_like_probabilities(scores: Array) -> bool:
    """Whether a row sums to one and all of it is from 0 to 1."""
    values = numbers(scores)
    return bool(
        values.size and values.min() >= 0 and values.max() <= 1 and abs(values.sum() - 1) < 1e-2
    )
