"""The bundle: what `convert` writes and everything else reads."""

from edgeserve.bundle.labels import Labels
from edgeserve.bundle.manifest import (
    Accuracy,
    Batching,
    Binding,
    Calibration,
    Candidate,
    Fidelity,
    FileEntry,
    Golden,
    Manifest,
    Measured,
    Placed,
    Precision,
    Preprocess,
    Recipe,
    Rejected,
    Source,
    Task,
    Variant,
)
from edgeserve.bundle.reading import Bundle, VariantFiles

__all__ = [
    "Accuracy",
    "Batching",
    "Binding",
    "Bundle",
    "Calibration",
    "Candidate",
    "Fidelity",
    "FileEntry",
    "Golden",
    "Labels",
    "Manifest",
    "Measured",
    "Placed",
    "Precision",
    "Preprocess",
    "Recipe",
    "Rejected",
    "Source",
    "Task",
    "Variant",
    "VariantFiles",
]
