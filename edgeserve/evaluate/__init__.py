"""How right a variant is: fidelity against the fp32 source, accuracy on labelled data."""

from edgeserve.evaluate.datasets import load_labelled, load_samples
from edgeserve.evaluate.metrics import Kinds, class_scores, fidelity, top1_accuracy
from edgeserve.evaluate.samples import Samples

__all__ = [
    "Kinds",
    "Samples",
    "class_scores",
    "fidelity",
    "load_labelled",
    "load_samples",
    "top1_accuracy",
]
