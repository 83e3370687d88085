"""What one conversion works on, known before the first variant is made."""

from __future__ import annotations

import msgspec

from edgeserve.bundle import Batching
from edgeserve.conversion.answering import Decided
from edgeserve.conversion.bounds import Bounds
from edgeserve.conversion.data import Data
from edgeserve.conversion.options import Options
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.targets.schema import Target
from edgeserve.tensors import Interface


class Job(msgspec.Struct, frozen=True):
    """The source, the target and the samples, with what was asked for.

    `interface` has `max_batch` set where requests may share a batch; `batching` says why, or why not.
    `answering` is how outputs become an answer. `threads` are those of one call while variants are timed (0: the engine's choice).
    """

    options: Options
    model: SourceModel
    target: Target
    data: Data
    interface: Interface
    batching: Batching
    bounds: Bounds
    threads: int
    answering: Decided = Decided()
