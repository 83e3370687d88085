"""From a model's outputs to an answer for people, as a bundle's Postprocess says."""

from edgeserve.postprocess.answers import (
    Answer,
    AnswerOptions,
    Box,
    BoxesAnswer,
    ClassesAnswer,
    ClassMap,
    EmbeddingAnswer,
    MaskAnswer,
    ScoredClass,
    TensorsAnswer,
)
from edgeserve.postprocess.postprocessor import Postprocessor

__all__ = [
    "Answer",
    "AnswerOptions",
    "Box",
    "BoxesAnswer",
    "ClassMap",
    "ClassesAnswer",
    "EmbeddingAnswer",
    "MaskAnswer",
    "Postprocessor",
    "ScoredClass",
    "TensorsAnswer",
]
