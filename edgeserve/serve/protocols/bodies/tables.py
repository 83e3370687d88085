"""Tables and arrays as bodies: CSV, JSON lines, numpy's .npy and .npz. Nothing is unpickled, and sizes are checked before
memory is taken."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
import zlib
from typing import Any, Final

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.protocols.bodies.long import (
    LONG_BYTES,
    LongNumbers,
    check_values,
    csv_as_json,
)
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_bytes
from edgeserve.values import Misfit, fitting
from edgeserve.wire.text import check_depth, parse_json
from edgeserve.wire.written import nested_json

# Where the data of an .npy file begins, if its header is as short as usual.
NPY_DATA: Final = 128
_NPY_HEADER: Final = 10_000  # bytes, as numpy's own limit
_BOM: Final = b"\xef\xbb\xbf"
_NPY: Final = b"\x93NUMPY"
_NPY_FIELD: Final = re.compile(
    r"\s*'(descr|fortran_order|shape)'\s*:\s*('[^']*'|True|False|\([\d,\s]*\))\s*,?\s*"
)
_NPY_TYPE: Final = re.compile(r"[<>=|]?[biufSU]\d{1,6}|\?")
_NPY_AXES: Final = 32


def from_csv(
    body: bytes | memoryview, interface: Interface, numbers: LongNumbers, *, header: bool = False
) -> Tensors:
    """One row a line, for the only input, whose other axes are filled in their order; or, with a header of the inputs'
    names, a column for each. `numbers` reads what is long. Raises InvalidInput."""
    data = bytes(body)
    if len(data) > LONG_BYTES and len(interface.inputs) == 1:
        (spec,) = interface.inputs
        array = _long(data, spec, numbers, header=header)
        if array is not None:
            return {spec.name: array}
    check_values(data.replace(b"\n", b","))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput("the CSV is not UTF-8") from None
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except csv.Error as error:
        raise InvalidInput(f"the body is not CSV: {error}") from None
    names = lines.pop(0) if header and lines else []
    if not lines:
        raise InvalidInput("the CSV has no rows")
    widths = set(map(len, lines))
    if len(widths) > 1:
        raise InvalidInput(
            f"the CSV's rows differ in length: {min(widths)} and {max(widths)} values"
        )
    if names and len(names) not in widths:
        raise InvalidInput(
            f"the CSV's header has {len(names)} names, its rows have {max(widths)} values"
        )
    if names and {name.strip() for name in names} == {spec.name for spec in interface.inputs}:
        return {
            name.strip(): _cells([[line[at]] for line in lines], interface.input(name.strip()))
            for at, name in enumerate(names)
        }
    if len(interface.inputs) != 1:
        wanted = ", ".join(spec.name for spec in interface.inputs)
        raise InvalidInput(
            f"CSV without the header {wanted} is for a model with one input; this one has "
            f"{len(interface.inputs)}"
        )
    (spec,) = interface.inputs
    return {spec.name: _cells(lines, spec)}


def _long(data: bytes, spec: TensorSpec, numbers: LongNumbers, *, header: bool) -> Array | None:
    """The rows of a long CSV; None for what only the general reader reads, such as `.5` or quoted values."""
    rows, width = data.removeprefix(_BOM), None
    if header:
        names, _, rows = rows.partition(b"\n")
        width = names.count(b",") + 1
        if not names.strip() or not names.isascii() or b'"' in names:
            return None
    try:
        array = numbers.array(spec, csv_as_json(rows))
    except InvalidInput:
        return None
    if array is None or array.ndim != 2 or not array.size or width not in (None, array.shape[1]):
        return None
    return array.reshape(_shape(spec, *array.shape))


def _cells(lines: list[list[str]], spec: TensorSpec) -> Array:
    if spec.dtype == "BYTES":
        texts = as_bytes(np.array(lines, object))
        return texts.reshape(_shape(spec, len(lines), len(lines[0])))
    if spec.dtype == "BF16":
        raise InvalidInput(
            f"input '{spec.name}' is BF16, which arrays of numpy and CSV do not hold"
        )
    kind = float if spec.numpy_dtype.kind == "f" else int
    try:
        values = [[kind(cell) for cell in line] for line in lines]
    except ValueError:
        wrong = next(cell for line in lines for cell in line if not _is(kind, cell))
        raise InvalidInput(
            f"the CSV holds {wrong!r:.40}, which is not a {'number' if kind is float else 'whole number'}",
            hint="a first line with names needs the content type text/csv; header=present",
        ) from None
    try:
        array = fitting(np.array(values, np.float64 if kind is float else np.int64), spec.dtype)
    except (Misfit, OverflowError) as error:
        raise InvalidInput(f"input '{spec.name}': {error}") from None
    return array.reshape(_shape(spec, *array.shape))


def _is(kind: type, cell: str) -> bool:
    try:
        kind(cell)
    except ValueError:
        return False
    return True


def _shape(spec: TensorSpec, rows: int, width: int) -> tuple[int, ...]:
    """Of `rows` lines with `width` values. Raises InvalidInput."""
    rest = spec.shape[1:]
    if not rest and width == 1:
        return (rows,)
    fixed = [d for d in rest if isinstance(d, int)]
    if len(fixed) == len(rest) and math.prod(fixed) == width:
        return (rows, *fixed)
    if len(rest) == 1 and not fixed:
        return (rows, width)
    if rows == 1 and spec.fits((width,)):
        return (width,)
    raise InvalidInput(
        f"input '{spec.name}' is {spec.describe()}: a line of {width} values does not fill it"
    )


def from_json_lines(body: bytes | memoryview, limits: Limits) -> list[Any]:
    """The value of each line that is not empty. Raises InvalidInput."""
    data = bytes(body)
    check_depth(data, limits.json_depth)
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                found.append(parse_json(line.strip()))
            except InvalidInput as error:
                raise InvalidInput(f"line {number}: {error}") from None
    return found


def from_npy(body: bytes | memoryview, name: str = "the body") -> Array:
    """An array, which may be a view on the body. Raises InvalidInput."""
    data = memoryview(body)
    header = _npy_header(bytes(data[: _NPY_HEADER + 12]))
    if header is None:
        raise InvalidInput(f"{name} is not an .npy file")
    kind = _NPY_TYPE.fullmatch(header.get("descr", ""))
    sizes = [size.strip() for size in header.get("shape", "x").strip("(,) ").split(",")]
    shape = (
        ()
        if sizes == [""]
        else tuple(int(s) if s.isdecimal() and len(s) < 16 else -1 for s in sizes)
    )
    if kind is None or len(shape) > _NPY_AXES or any(not 0 <= d <= len(data) for d in shape):
        described = f"{header.get('descr')} of shape {header.get('shape')}"
        raise InvalidInput(
            f"{name} holds {described:.80}: expected numbers, booleans or texts, no objects"
        )
    try:
        dtype = np.dtype(kind[0])
    except TypeError:
        raise InvalidInput(f"{name} holds the unknown type {kind[0]}") from None
    rest = data[int(header["start"]) :]
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise InvalidInput(f"{name} has {len(rest)} bytes for the shape {list(shape)} of {dtype}")
    if not dtype.itemsize:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(rest, dtype)
    if dtype.kind == "b" and flat.size and int(flat.view(np.uint8).max()) > 1:
        raise InvalidInput(f"{name}: a boolean is neither 0 nor 1")
    if not flat.flags.aligned:
        flat = flat.copy()
    fortran = header.get("fortran_order") == "True"
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)


def _npy_header(data: bytes) -> dict[str, str] | None:
    """The fields of an .npy file's header as their texts, and where the data `start`; None if it is not one. numpy itself
    would read the header as Python. Source: numpy.lib.format, versions 1 to 3."""
    wide = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(data[6:8])
    if not data.startswith(_NPY) or wide is None:
        return None
    first = 8 + wide
    start = first + int.from_bytes(data[8:first], "little")
    if start > min(len(data), first + _NPY_HEADER):
        return None
    text = data[first:start].decode("latin-1").strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    found = {"start": str(start)}
    at, end = 1, len(text) - 1
    while at < end and (match := _NPY_FIELD.match(text, at, end)) is not None:
        found[match[1]] = match[2].strip("'")
        at = match.end()
    return found if at == end else None


def from_npz(body: bytes | memoryview, limits: Limits) -> Tensors:
    """Arrays by name. Raises InvalidInput, BodyTooLarge."""
    most = limits.inflated_bytes or limits.body_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            if len(members) > 1_000 or sum(m.file_size for m in members) > most:
                raise BodyTooLarge(f"the .npz holds more than {most} bytes")
            found = {}
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InvalidInput(
                        f"'{member.filename:.60}' is compressed otherwise than by numpy"
                    )
                with archive.open(member) as file:
                    data = file.read(member.file_size + 1)
                name = member.filename.removesuffix(".npy")
                found[name] = from_npy(data, f"'{name:.60}'")
            return found
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        zlib.error,
    ) as error:
        raise InvalidInput(f"the body is not an .npz file: {error!s:.120}") from None


def as_inputs(arrays: Tensors, interface: Interface) -> Tensors:
    """Arrays in the inputs' own types; a lone one is the only input, whatever its name. Raises InvalidInput."""
    specs = interface.inputs
    if len(arrays) == len(specs) == 1:
        arrays = {specs[0].name: next(iter(arrays.values()))}
    found = {}
    for name, array in arrays.items():
        spec = interface.input(name)
        if spec.dtype == "BF16":
            raise InvalidInput(f"input '{name}' is BF16, which arrays of numpy and CSV do not hold")
        if spec.dtype == "BYTES":
            if array.dtype.kind not in "SU":
                raise InvalidInput(f"input '{name}': expected texts, got {array.dtype}")
            found[name] = as_bytes(array)
            continue
        try:
            array = fitting(array, spec.dtype)
        except Misfit as error:
            raise InvalidInput(f"input '{name}': {error}") from None
        if not spec.fits(array.shape) and spec.fits((1, *array.shape)):
            array = array[None]
        found[name] = array
    return found


def to_npy(array: Array) -> bytes:
    """Raises InvalidInput for what has no form without a pickle."""
    if array.dtype == object:
        array = as_bytes(array).astype(bytes)
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def to_npz(arrays: Tensors) -> bytes:
    """An uncompressed .npz."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{n: _plain(a) for n, a in arrays.items()})
    return file.getvalue()


def _plain(array: Array) -> Array:
    return as_bytes(array).astype(bytes) if array.dtype == object else array


def to_csv(array: Array, most: int) -> bytes:
    """A line for each row, whose values are flat. Raises InvalidInput for more than `most` bytes."""
    width = math.prod(array.shape[1:])
    rows = array.reshape(len(array) if array.ndim else 1, width)
    if array.dtype.kind in "fiu":
        lines = [nested_json("", row, "", "token", most=most)[1:-1] + b"\n" for row in rows]
        text = b"".join(lines)
    else:
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow(_cell(value) for value in row.tolist())
        text = file.getvalue().encode()
    if len(text) > most:
        raise InvalidInput(f"the answer is larger than {most} bytes")
    return text


def _cell(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
