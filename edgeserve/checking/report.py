"""What a check found: values only, printed by `edgeserve.cli.check` and exported by `sarif`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgeserve.tensors import TensorSpec

Level = Literal["error", "warning", "note"]
# `runs`: the engine itself took all nodes. `partly`: some nodes leave the device for the CPU.
# `unsupported`: the engine refuses. `unverified`: nobody here can tell. `no-path`: nothing converts to it.
State = Literal["runs", "partly", "unsupported", "unverified", "no-path"]
# What a runtime says of one operator.
Answer = Literal["yes", "no", "partly", "unverified"]

MAX_NODES: Final = 5

RULES: Final[dict[str, str]] = {
    "unsupported-op": "A runtime has no implementation of an operator.",
    "unsupported-type": "A runtime implements an operator, but not for the types the model gives it.",
    "engine-refuses": "A runtime refuses the model for another reason, in its own words.",
    "no-reference": "onnxruntime's CPU provider, which variants are proven against, cannot run the model.",
    "unknown-op": "An operator that ONNX does not define in the opset the model names.",
    "cpu-fallback": "Nodes that an accelerator leaves to the CPU.",
    "no-conversion-path": "No installed converter leads from this format to what a runtime reads.",
    "not-verified": "No engine that could tell is installed or opens here.",
    "opset-too-old": "The opset is older than edgeserve converts.",
    "opset-too-new": "The opset is newer than an engine knows.",
    "custom-domain": "Operators from outside the ONNX standard.",
    "dynamic-shape": "Dimensions that vary where the target wants them fixed.",
    "fixed-batch": "The batch size is fixed in the model, so requests cannot share a batch.",
    "interface": "An input or output that is not a tensor with a known type and shape.",
    "state": "The model keeps a state between calls, which each request starts anew.",
    "passed-state": "A state goes through inputs and outputs: the client keeps it.",
    "shape-inference": "Shapes inside the model contradict each other.",
    "float64": "Weights in double precision.",
    "control-flow": "If, Loop or Scan.",
    "already-quantized": "The model is quantized already.",
    "large-model": "The model does not fit into one protobuf file.",
    "int8-stays-float": "Operators that onnxruntime's quantizer leaves in floating point.",
    "int8-static-risk": "Static int8 tends to cost this kind of model accuracy.",
    "memory-limit": "The estimate exceeds what the target has.",
}  # fmt: skip


class Finding(msgspec.Struct, frozen=True):
    """One thing to know. `nodes` are the first few of `node_count`; empty `targets`: all of them."""

    rule: str
    level: Level
    message: str
    targets: tuple[str, ...] = ()
    runtime: str | None = None
    device: str | None = None
    op: str | None = None
    nodes: tuple[str, ...] = ()
    node_count: int = 0
    hint: str | None = None


class Issue(msgspec.Struct, frozen=True):
    """An operator that an engine cannot run, with all nodes it is about. `why` is a short clause."""

    rule: str
    op: str
    nodes: tuple[str, ...]
    why: str


def unnamed(op: str, operators: dict[str, int]) -> tuple[str, ...]:
    """The nodes of an operator in a format that names none: the first is `Op[0]`."""
    return tuple(f"{op}[{i}]" for i in range(operators.get(op, 1)))


class Verdict(msgspec.Struct, frozen=True):
    """What one runtime says of the model on one device.

    `issues` are what it does not run there; `why` says who says so, or why nobody could.
    """

    runtime: str
    device: str
    state: State
    why: str
    issues: tuple[Issue, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.runtime}/{self.device}"


class EntryReport(msgspec.Struct, frozen=True):
    """One entry of a target's chain: `ok` unless a variant for it cannot be made or opened."""

    runtime: str
    device: str
    precisions: tuple[str, ...]
    ok: bool
    state: State
    unsupported_nodes: int
    why: str


class TargetReport(msgspec.Struct, frozen=True):
    """`ok` when something of the chain can serve the device that the target is about."""

    name: str
    title: str
    ok: bool
    entries: tuple[EntryReport, ...]


class Operator(msgspec.Struct, frozen=True):
    """How many nodes an operator has, and what each runtime and device says of it."""

    op: str
    nodes: int
    support: dict[str, Answer]


class Estimate(msgspec.Struct, frozen=True):
    """Size of the file, and memory at batch 1; None where shapes are not known.

    The formulas are in docs/check.md.
    """

    precision: str
    size_bytes: int
    weight_bytes: int
    peak_memory_bytes: int | None


class CheckReport(msgspec.Struct, frozen=True):
    """All that was found. `ok`: every asked target is fine."""

    path: str
    format: str
    version: str
    ok: bool
    nodes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engines: dict[str, str | None]
    targets: tuple[TargetReport, ...]
    operators: tuple[Operator, ...]
    findings: tuple[Finding, ...]
    estimates: tuple[Estimate, ...]

    def count(self, level: Level) -> int:
        return sum(f.level == level for f in self.findings)
