"""The runtime contract: the few shapes everything that runs a model is built from.

A runtime is an adapter to one inference engine. Built-in ones and third parties' are found alike,
by the entry-point group `edgeserve.runtimes`; each entry names a class without constructor arguments.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from edgeserve.bundle import VariantFiles
from edgeserve.bundle.manifest import Option
from edgeserve.tensors import Tensors, TensorSpec

Device = Literal["cpu", "gpu", "npu"]


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device a runtime can open: `device` is `cpu`, `gpu`, `npu` (`gpu.1` for a second one).

    `detail` is the way it is opened or its name, `hardware` its name where the engine tells both."""

    device: str
    detail: str
    hardware: str | None = None


class RuntimeInfo(msgspec.Struct, frozen=True):
    """What `probe` found. `problem` says why a runtime, or one of its devices, cannot be used."""

    name: str
    version: str | None
    devices: tuple[DeviceInfo, ...] = ()
    problem: str | None = None
    hint: str | None = None

    @property
    def installed(self) -> bool:
        return self.version is not None

    def opens(self, device: str) -> bool:
        return any(d.device == device for d in self.devices)


class LoadOptions(msgspec.Struct, frozen=True):
    """How to open a variant.

    `threads` is the number of intra-op threads of one call (0: the engine's choice); `instances` how
    many calls shall run side by side; `spin` lets idle threads busy-wait (lower latency, burns CPU
    between requests); `static_shapes` compiles for batch 1 and runs larger batches row by row, but for
    the sizes in `batches`, for which it compiles, too; `options` are the candidate's own, for the engine.
    """

    threads: int = 0
    instances: int = 1
    spin: bool = True
    static_shapes: bool = False
    batches: tuple[int, ...] = ()
    options: dict[str, Option] = {}


class Placement(msgspec.Struct, frozen=True):
    """What runs where, read from the engine after compiling.

    `shares` maps a device to its share of executed operations, `mac_shares` to its share of
    multiply-accumulates (empty: not known); `compute_ops` counts convolutions and matrix products after
    fusion, `int8_compute_ops` those among them that run in int8. `left_on_cpu` counts, by operator, what
    an accelerator's session runs on the CPU.
    """

    shares: dict[str, float]
    inference_precision: str
    compute_ops: int
    int8_compute_ops: int
    mac_shares: dict[str, float] = {}
    left_on_cpu: dict[str, int] = {}

    def describe(self) -> str:
        """One line: `98 % of MACs on gpu, fp16; 2 ops on cpu: Softmax`."""
        shares, what = (self.mac_shares, "MACs") if self.mac_shares else (self.shares, "operations")
        if not shares:
            return f"placement unknown, {self.inference_precision}"
        device = next((d for d in shares if d != "cpu"), "cpu")
        text = f"{percent(shares[device])} of {what} on {device}, {self.inference_precision}"
        if not self.left_on_cpu:
            return text
        count, names = sum(self.left_on_cpu.values()), list(self.left_on_cpu)
        more = f" and {len(names) - 3} kinds more" if len(names) > 3 else ""
        return f"{text}; {count} op{'s' * (count > 1)} on cpu: {', '.join(names[:3])}{more}"


def shares_of(kind: str, cpu: float) -> dict[str, float]:
    """The shares of a device of this kind and of the CPU, which has `cpu`."""
    return {kind: 1 - cpu, "cpu": cpu} if cpu else {kind: 1.0}


def percent(share: float) -> str:
    """A share as `98 %`; what is not quite all, or not quite nothing, is not rounded to it."""
    if 0.99 < share < 1:
        return ">99 %"
    if 0 < share < 0.01:
        return "<1 %"
    return f"{100 * share:.0f} %"


class Session(Protocol):
    """An opened variant. `run` is synchronous, releases the GIL while the engine computes, and may be
    called from several threads. It expects tensors that fit `inputs` and does not check them again;
    it raises InferenceFailed with the engine's message. Of a model that keeps a state, each call starts
    from the initial one."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def device(self) -> str: ...

    @property
    def concurrency(self) -> int:
        """How many calls of `run` make progress at once; further ones wait."""
        ...

    def run(self, inputs: Tensors) -> Tensors: ...

    def placement(self) -> Placement:
        """May cost another load and one inference."""
        ...

    def close(self) -> None: ...


class Runtime(Protocol):
    """An adapter to one engine. It never falls back on its own.

    One whose `reads_contents` is true reads a variant on the CPU by VariantFiles.content alone, which
    verifies it: nothing is unpacked for it, and no file that changes later changes what it has opened. Others
    are given a verified path.
    """

    name: str
    formats: tuple[str, ...]
    requires: tuple[str, ...]  # pip requirements of the engine, for messages and packages

    def probe(self) -> RuntimeInfo:
        """What is installed and which devices open. Never raises for a missing engine."""
        ...

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        """Open a variant. Raises DependencyMissing, DeviceUnavailable, UnsupportedModel."""
        ...
