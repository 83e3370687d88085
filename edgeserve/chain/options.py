"""How a chain is opened and kept."""

from __future__ import annotations

import sys
from typing import Literal

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import UsageError
from edgeserve.runtimes.inject import parse_fault

Isolation = Literal["always", "accelerators", "never"]
Standby = Literal["auto", "warm", "cold"]


class ChainOptions(msgspec.Struct, frozen=True):
    """How to open a chain.

    With `fallback=False` the first candidate's own error is raised. `device` keeps only candidates on that
    device; `require` prefers them, and refuses to start if another serves. `threads`, `instances`, `spin`
    and `batches` are as in LoadOptions. `isolate` selects the candidates that run in an isolated process,
    `standby` whether the one behind an accelerator is kept open.

    Seconds: `watchdog_s` is the minimum time limit of a call, `open_timeout_s` the time limit of opening;
    `recheck_s` is the time between golden checks while serving (0: none); a failed candidate is tried
    again after `reopen_s`, each time after about twice as long, up to `reopen_longest_s`, and counts as
    recovered once it has served for `stable_s`. A device on which a request failed and which then
    reproduced its golden samples is not checked again within `trust_s` while it answers others: long
    enough that a stream of such requests costs next to nothing, short beside a failed device's pauses.

    `isolated_memory` caps an isolated process, in bytes (0: no cap). `verify` has every batch carry a golden
    sample, so that not one answer of a device that has begun to compute wrong numbers gets out. `inject`
    are faults (edgeserve.runtimes.inject).
    """

    fallback: bool = True
    device: str | None = None
    variant: str | None = None
    require: str | None = None
    threads: int = 0
    instances: int = 1
    spin: bool = True
    batches: tuple[int, ...] = ()
    isolate: Isolation = "accelerators"
    standby: Standby = "auto"
    watchdog_s: float = 2.0
    open_timeout_s: float = 180.0
    recheck_s: float = 0.0
    verify: bool = False
    reopen_s: float = 1.0
    reopen_longest_s: float = 300.0
    stable_s: float = 60.0
    trust_s: float = 10.0
    isolated_memory: int = 0
    inject: tuple[str, ...] = ()

    def is_required(self, candidate: Candidate) -> bool:
        """Whether it is on the required device; True for every candidate if none is required."""
        return candidate.is_on(self.require)

    def check(self) -> None:
        """Raise UsageError for invalid faults, options that exclude each other, and what this system cannot
        do."""
        for text in self.inject:
            parse_fault(text)
        if sys.platform != "linux" and (self.inject or self.isolate == "always"):
            raise UsageError(
                f"{'injected faults need' if self.inject else '--isolate always needs'} isolated processes",
                cause=f"isolated processes need Linux, this is {sys.platform}",
                hint="leave it out: everything runs in the server's own process here",
            )
        if self.inject and self.isolate == "never":
            raise UsageError(
                "injected faults need isolated candidates",
                hint="leave out --isolate never, or --inject",
            )
