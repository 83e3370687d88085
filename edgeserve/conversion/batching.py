"""Whether requests of a model may share a batch: what the source's graph says, what each variant's own graph
says, and what each variant does on its engine beside hostile neighbours. All three must agree.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.bundle import Batching, Variant
from edgeserve.chain import try_neighbours
from edgeserve.conversion.independence import rows_of_graph
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.evaluate import Samples
from edgeserve.formats.onnx import OnnxFile
from edgeserve.formats.reading import ModelReader
from edgeserve.runtimes import Session
from edgeserve.tensors import Interface, TensorSpec

# Maximum rows of a batch that requests of one model share.
MAX_BATCH: Final = 32
# Samples in which to look for two of one shape, and for the integers that occur.
_SAMPLES: Final = 8


def by_graph(model: SourceModel) -> tuple[Interface, Batching]:
    """The interface with `max_batch` set if the source's graph keeps rows apart, and what it says.

    A dynamic first dimension does not say so by itself: it may be a sequence, or rows may interact.
    """
    interface = model.interface
    if model.state:  # rows of a batch would follow each other, or share a state
        return interface, Batching(1, "it keeps a state between calls")
    if model.proto is None:
        return interface, Batching(
            1, f"rows are not known to be independent ({model.format} source)"
        )
    for spec in (*interface.inputs, *interface.outputs):
        if not spec.shape or isinstance(spec.shape[0], int):
            where = f"'{spec.name}' has no dynamic first dimension"
            return interface, Batching(1, f"rows are not known to be independent ({where})")
    found = rows_of_graph(model.proto)
    if not found.known:
        return interface, Batching(1, found.reason)
    return _with_rows(interface), Batching(MAX_BATCH, found.reason)


def _with_rows(interface: Interface) -> Interface:
    """All first axes are the rows', whatever the file calls them."""
    rows = interface.inputs[0].shape[0]

    def named(spec: TensorSpec) -> TensorSpec:
        return msgspec.structs.replace(spec, shape=(rows, *spec.shape[1:]))

    return Interface(
        tuple(map(named, interface.inputs)), tuple(map(named, interface.outputs)), MAX_BATCH
    )


def of_variant(made: ModelReader | None, interface: Interface) -> Batching | None:
    """What a variant's own graph says; None where it has none that is read, or requests share no batches."""
    if not isinstance(made, OnnxFile) or not interface.max_batch:
        return None
    found = rows_of_graph(made.proto)
    return Batching(interface.max_batch if found.known else 1, found.reason)


def on_engine(
    variant: Variant, session: Session, interface: Interface, samples: Samples
) -> Batching | None:
    """What a variant does beside hostile neighbours; None where requests share no batches. Raises DeviceLost."""
    if interface.max_batch <= 1:
        return None
    known = variant.batching
    if known is not None and known.max_batch <= 1:
        return known
    seen = [samples[i] for i in range(min(_SAMPLES, len(samples)))]
    return try_neighbours(session, interface, seen, variant.precision)
