"""Whether requests may share a batch on a candidate: each answer must stay what it is alone, whatever the
neighbours hold. Graphs are read where models are converted (edgeserve.conversion.independence); here an
opened session is tried with hostile neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import Batching, Bundle, Candidate, Precision
from edgeserve.chain.failures import is_out_of_memory
from edgeserve.chain.golden import golden_batches
from edgeserve.devices import machine
from edgeserve.devices.names import device_kind
from edgeserve.errors import DeviceLost, EdgeServeError, InferenceFailed
from edgeserve.runtimes import Session, engine_version, runtime
from edgeserve.tensors import PADDING_MASKS, Array, Interface, Tensors, TensorSpec, join_batches

log = logging.getLogger(__name__)

# How far an answer may be from itself where only the number of rows differs: an engine's kernels for few
# rows and for many add in another order, in the precision that they compute in. fp32 on accelerators is
# often TF32 or fp16; a rounding to int8 that falls the other way moves what follows by a step.
KERNELS: Final[dict[Precision, float]] = {
    "fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 5e-2, "int4": 5e-2,
}  # fmt: skip
_ACCELERATED: Final = 2e-2
# Beside other neighbours the same kernels run, and differ by nothing, or by what they differ from call to
# call: a share of the above, or some times what was seen beside copies of itself.
_SHARE: Final = 0.1
_SLACK: Final = 4.0
# Elements much smaller than their tensor are held to this share of its size.
_SMALL: Final = 1e-2
# What floats are multiplied by; that of the extremes depends on the type.
_FACTORS: Final = {
    "rows 1000 times as large": 1e3,
    "rows -1000 times as large": -1e3,
    "rows of opposite sign": -1.0,
    "tiny rows": 1e-6,
    "rows of zeros": 0.0,
}
_EXTREME: Final = "extreme rows"
# Inputs and outputs of a batch that is tried take so much at most, and what is between them some times as much.
_BATCH_BYTES: Final = 64_000_000
# Batches of up to so many rows are tried with each neighbour by itself.
_FEW: Final = 3
_BESIDE: Final = "an answer is the same beside hostile neighbours"


class _Neighbour(msgspec.Struct, frozen=True):
    """One request of one row, and what it is in words."""

    name: str
    inputs: Tensors


class _Mixes(Exception):
    """Rows are not independent; the message says what showed that."""


def batching_of(
    bundle: Bundle, candidate: Candidate, session: Session, batches: Sequence[int] = (),
    *, tried: bool = True,
) -> Batching:  # fmt: skip
    """How many rows requests may share on an opened candidate, and why.

    By what `convert` recorded, if that was with this engine on this CPU; else by trying it now, also in
    the sizes of `batches`. Without `tried` nothing is run: the manifest alone counts. Raises DeviceLost.
    """
    manifest = bundle.manifest
    interface, variant = manifest.interface, manifest.variant(candidate.variant)
    if interface.max_batch <= 1:
        known = manifest.batching
        reason = known.reason if known else "rows are not known to be independent"
        return Batching(1, reason if not interface.max_batch else "the model takes one row")
    if variant.batching is not None and variant.batching.max_batch <= 1:
        return variant.batching
    if manifest.batching is None and (problem := _other_symbols(interface)) is not None:
        return Batching(1, problem)
    if not tried:
        return Batching(interface.max_batch, "not tried here")
    recorded = _recorded(bundle, candidate)
    if recorded is not None and not any(1 < size <= interface.max_batch for size in batches):
        most = min(recorded.max_batch, interface.max_batch)
        return msgspec.structs.replace(recorded, max_batch=most)
    samples = golden_batches(interface, bundle.golden()[0])
    return try_neighbours(session, interface, samples, variant.precision, batches)


def _recorded(bundle: Bundle, candidate: Candidate) -> Batching | None:
    for measured in bundle.manifest.variant(candidate.variant).measured:
        same = (measured.runtime, measured.device) == (candidate.runtime, candidate.device)
        if same and measured.batching is not None and measured.machine == this_machine():
            version = engine_version(runtime(candidate.runtime))
            if measured.runtime_version == version:
                return measured.batching
    return None


def this_machine() -> str:
    """What kernels depend on besides the engine, as `Measured.machine` has it."""
    return machine().cpu or machine().arch


def _other_symbols(interface: Interface) -> str | None:
    """What keeps the first axes of a bundle that was not analysed from being that of the rows."""
    names: dict[str, str] = {}
    for spec in (*interface.inputs, *interface.outputs):
        first = spec.shape[0] if spec.shape else None
        if not isinstance(first, str):
            return f"rows are not known to be independent ('{spec.name}' has no axis of rows)"
        if first != f"{spec.name}_dim0":  # the name of an axis without one
            names.setdefault(first, spec.name)
    if len(names) < 2:
        return None
    told = ", ".join(f"'{owner}' has [{name}]" for name, owner in names.items())
    return f"rows are not known to be independent (first axes differ: {told})"


def try_neighbours(
    session: Session,
    interface: Interface,
    samples: Sequence[Tensors],
    precision: Precision,
    batches: Sequence[int] = (),
) -> Batching:
    """Run requests of one row alone and beside hostile neighbours, in batches of 2, 3, `batches` and as
    many as the interface says. `samples` are real requests of one row, of one shape.

    Raises DeviceLost.
    """
    try:
        trial = _Trial(session, interface, samples, precision)
        most = min(interface.max_batch, trial.most)
        sizes = sorted({n for n in (2, 3, *batches) if 1 < n < most})
        for size in sizes:
            trial.run(size)
        proven = trial.largest(most, sizes[-1] if sizes else 1)
    except _Mixes as found:
        return Batching(1, f"rows interact ({found})")
    except DeviceLost:
        raise
    except EdgeServeError as error:
        return Batching(1, f"a batch fails: {error.cause or error.message}")
    except Exception as error:  # what cannot be tried is not known: it serves one at a time
        log.exception("batches could not be tried")
        return Batching(1, f"batches could not be tried ({type(error).__name__})")
    if proven < most:
        return Batching(proven, f"{_BESIDE}; more rows do not fit its memory")
    if proven < interface.max_batch:
        return Batching(proven, f"{_BESIDE}; larger batches of rows this large were not tried")
    return Batching(proven, _BESIDE)


class _Trial:
    """Two requests whose answers are known, and neighbours for them."""

    def __init__(
        self,
        session: Session,
        interface: Interface,
        samples: Sequence[Tensors],
        precision: Precision,
    ) -> None:
        self._session = session
        self._outputs = interface.outputs
        first = samples[0]
        alike = [s for s in samples if all(s[n].shape == a.shape for n, a in first.items())]
        self._victims = [first, alike[-1] if len(alike) > 1 else _turned(first)]
        self._alone = [self._call(v, 1) for v in self._victims]
        accelerated = device_kind(session.device) != "cpu" and precision == "fp32"
        self._kernels = _ACCELERATED if accelerated else KERNELS[precision]
        self._noise = self._worst(self._call(first, 1), {0: 0})
        if self._noise > self._kernels:
            raise _Mixes(f"an answer changes from call to call by {_share(self._noise)}")
        self._neighbours = [n for n in _hostile(interface.inputs, alike) if self._runs(n.inputs)]
        if not self._neighbours:
            self._neighbours = [_Neighbour("another request", self._victims[1])]

    @property
    def most(self) -> int:
        """The most rows that are tried."""
        tensors = (*self._victims[0].values(), *self._alone[0].values())
        return max(2, _BATCH_BYTES // max(1, sum(a.nbytes for a in tensors)))

    def _runs(self, inputs: Tensors) -> bool:
        """Whether a neighbour has an answer at all, alone. One whose answer has other than one row shows
        that rows do not stay what they are."""
        try:
            self._call(inputs, 1)
        except DeviceLost:
            raise
        except EdgeServeError:
            return False
        return True

    def largest(self, most: int, proven: int) -> int:
        """The most rows that fit the device's memory, tried."""
        size = most
        while size > proven:
            try:
                self.run(size)
            except InferenceFailed as error:
                if not is_out_of_memory(error):
                    raise
                size //= 2
            else:
                return size
        return proven

    def run(self, size: int) -> None:
        """Raises _Mixes; InferenceFailed where a batch of this size does not run."""
        noise = max(self._noise, self._beside_copies(size))
        bound = max(_SHARE * self._kernels, _SLACK * noise)
        for name, rows, places in self._arrangements(size):
            error = self._worst(self._call(join_batches(rows), size), places)
            if error > bound:
                raise _Mixes(f"beside {name} an answer changes by {_share(error)}")

    def _beside_copies(self, size: int) -> float:
        error = 0.0
        for victim in range(len(self._victims) if size <= _FEW else 1):
            together = self._call(join_batches([self._victims[victim]] * size), size)
            error = max(error, self._worst(together, dict.fromkeys(range(size), victim)))
        if error > self._kernels:
            raise _Mixes(f"an answer changes by {_share(error)} where there are {size} rows")
        return error

    def _arrangements(self, size: int) -> Iterator[tuple[str, list[Tensors], dict[int, int]]]:
        """What the neighbours are, a batch, and which of its places have which victim."""
        hostile = self._neighbours
        if size > _FEW:  # all of them at once: such a batch takes long
            places = {0: 0, size // 2: 1, size - 1: 0}
            batch = [hostile[i % len(hostile)].inputs for i in range(size)]
            yield "hostile rows", _with(batch, places, self._victims), places
            return
        for index, neighbour in enumerate(hostile):
            places = {index % size: index % 2}
            yield (
                neighbour.name,
                _with([neighbour.inputs] * size, places, self._victims),
                places,
            )

    def _call(self, inputs: Tensors, size: int) -> Tensors:
        try:
            outputs = self._session.run(inputs)
        except EdgeServeError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise InferenceFailed("the engine failed", cause=cause) from error
        for spec in self._outputs:
            rows = len(outputs[spec.name]) if outputs[spec.name].ndim else 0
            if rows != size:
                raise _Mixes(f"'{spec.name}' has {rows} rows where there were {size}")
        return outputs

    def _worst(self, outputs: Tensors, places: dict[int, int]) -> float:
        """The largest error of an output over the victims at these places."""
        worst = 0.0
        for spec in self._outputs:
            alone = [a[spec.name] for a in self._alone]
            for place, victim in places.items():
                got = outputs[spec.name][place : place + 1]
                worst = max(worst, row_error(alone[victim], got, alone))
        return worst


def _with(
    batch: list[Tensors], places: dict[int, int], victims: Sequence[Tensors]
) -> list[Tensors]:
    for place, victim in places.items():
        batch[place] = victims[victim]
    return batch


def _share(error: float) -> str:
    return f"{100 * error:.2g} %" if np.isfinite(error) else "all of it"


def row_error(alone: Array, got: Array, usual: Sequence[Array] = ()) -> float:
    """How far an answer is from what it is alone: the RMS of differences, each in shares of its element's
    size, which is the largest of what it is alone, what it is in `usual` answers, and a small share of the
    whole. Infinite for another shape, for other integers or texts, and for NaN or infinity in other places.
    """
    if alone.shape != got.shape:
        return float("inf")
    if alone.dtype.kind != "f":
        return _difference(alone, got)
    finite = np.isfinite(alone)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    if not finite.any():
        return 0.0
    wide, other = alone[finite].astype(np.float64), got[finite].astype(np.float64)
    size = np.maximum(np.abs(wide), _SMALL * np.sqrt(np.mean(np.square(wide))))
    alike = [u[finite].astype(np.float64) for u in usual if u.shape == alone.shape]
    if alike:
        known = np.where(np.isfinite(alike), alike, 0.0)
        size = np.maximum(size, np.sqrt(np.mean(np.square(known), axis=0)))
    off = np.abs(other - wide)
    if (off[size == 0] > 0).any():
        return float("inf")
    shares = off[size > 0] / size[size > 0]
    return float(np.sqrt(np.mean(np.square(shares)))) if shares.size else 0.0


def _difference(alone: Array, got: Array) -> float:
    """Of integers and texts. Those of 8 bits are quantized numbers: they may be rounded the other way."""
    if np.array_equal(alone, got):
        return 0.0
    bytes_ = alone.dtype.kind in "iu" and alone.dtype.itemsize == 1
    if bytes_ and np.abs(alone.astype(np.int16) - got.astype(np.int16)).max() <= 1:
        return 0.0
    return float("inf")


# neighbours


def _hostile(specs: Sequence[TensorSpec], samples: Sequence[Tensors]) -> list[_Neighbour]:
    """Requests whose floats are far from the samples', and whose integers are among those seen: they may
    be indices, which must stay in range."""
    first = samples[0]
    names = [*_FACTORS, _EXTREME]
    if not any(first[s.name].dtype.kind == "f" for s in specs):
        names = ["rows of the largest values", "rows of the smallest values", "rows in reverse"]
    found = []
    for index, name in enumerate(names):
        inputs = {
            s.name: _changed(s, [sample[s.name] for sample in samples], name, index) for s in specs
        }
        found.append(_Neighbour(name, inputs))
    return found


def _changed(spec: TensorSpec, seen: Sequence[Array], name: str, index: int) -> Array:
    array = seen[index % len(seen)]
    if array.dtype.kind == "f":
        return _scaled(array, name)
    if spec.name in PADDING_MASKS and index % 2 == 0:
        short = np.zeros_like(array)
        short[:, :1] = 1  # all but the first position is padding
        return short
    if array.dtype.kind == "b":
        return np.full_like(array, index % 2 == 0)
    if array.dtype.kind not in "iu" or spec.dtype == "BF16" or not array.size:
        return _turned({spec.name: array})[spec.name]
    values = [np.max, np.min][index % 2]([values(a) for a in seen for values in (np.max, np.min)])
    return np.ascontiguousarray(np.flip(array)) if index % 3 == 2 else np.full_like(array, values)


def _scaled(array: Array, name: str) -> Array:
    limits = np.finfo(array.dtype)
    if name == _EXTREME:
        signs = np.where(np.arange(array.size) % 2 == 0, 1.0, -1.0).reshape(array.shape)
        return (signs * (float(limits.max) / 4)).astype(array.dtype)
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64) * _FACTORS[name]
    return np.clip(wide, float(limits.min), float(limits.max)).astype(array.dtype)


def _turned(inputs: Tensors) -> Tensors:
    """A request like this one: its values in reverse order."""
    return {n: np.ascontiguousarray(a[:, ::-1] if a.ndim > 1 else a) for n, a in inputs.items()}
