"""What `convert` is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from edgeserve.bundle import Candidate, Measured, Precision, Preprocess


class Options(msgspec.Struct, frozen=True):
    """What `convert` is asked for; the command line's flags, one to one.

    `calibrate` is a folder of images, an `.npz` or `.npy`, or the word `random`; `evaluate` a
    labels CSV or an `.npz` with labels; `labels` a text file with one class name a line.
    """

    target: str = "auto"
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    calibrate: str | None = None
    calibration_samples: int = 128
    evaluate: str | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    max_drop: float = 1.0
    min_fidelity: float | None = None
    strict: bool = False
    force: bool = False
    name: str | None = None
    tool_env: bool = True


class Row(msgspec.Struct, frozen=True):
    """One tried variant in the report. `chosen` rows are in the bundle's chain."""

    variant: str
    runtime: str
    device: str
    precision: Precision
    chosen: bool
    reason: str
    size_bytes: int | None = None
    measured: Measured | None = None


class Conversion(msgspec.Struct, frozen=True):
    """What `convert` did: the bundle's path and the report."""

    bundle: str
    target: str
    source_size_bytes: int
    bundle_size_bytes: int
    reference_latency_ms: float
    reference_accuracy: float | None
    proof_samples: int
    proof_source: str
    chain: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
