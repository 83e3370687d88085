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
    """A device a runtime can open: `device` is `cpu`, `gpu`, `npu` (`gpu.1` for a second one)."""

    device: str
    detail: str


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
    between requests); `static_shapes` compiles for batch 1 and runs larger batches row by row;
    `options` are the candidate's own, for the engine.
    """

    threads: int = 0
    instances: int = 1
    spin: bool = True
    static_shapes: bool = False
    options: dict[str, Option] = {}


class Placement(msgspec.Struct, frozen=True):
    """What runs where, read from the engine after compiling.

    `shares` maps a device to its share of executed operations; `compute_ops` counts convolutions and
    matrix products after fusion, `int8_compute_ops` those among them that run in int8.
    """

    shares: dict[str, float]
    inference_precision: str
    compute_ops: int
    int8_compute_ops: int


class Session(Protocol):
    """An opened variant. `run` is synchronous, releases the GIL while the engine computes, and may be
    called from several threads. It expects tensors that fit `inputs` and does not check them again;
    it raises InferenceFailed with the engine's message."""

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
    """An adapter to one engine. It never falls back on its own."""

    name: str
    formats: tuple[str, ...]
    requires: tuple[str, ...]  # pip requirements of the engine, for messages and packages

    def probe(self) -> RuntimeInfo:
        """What is installed and which devices open. Never raises for a missing engine."""
        ...

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        """Open a variant. Raises DependencyMissing, DeviceUnavailable, UnsupportedModel."""
        ...
