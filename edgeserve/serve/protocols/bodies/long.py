"""Long JSON: numbers are read as typed lists, in pieces. As Python's objects they may take fifty times the memory of their
text, and no other thread runs while those are made."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, Interface, TensorSpec
from edgeserve.wire.json import NO_JSON_FORM, JsonPort, commas
from edgeserve.wire.text import parse_json

# What is longer is long.
LONG_BYTES: Final = 1 << 20
# More values than that do not become objects.
MOST_VALUES: Final = 1 << 19
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RECORDS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
# What decoders raise for text that does not fit them.
_UNFIT: Final = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


def general(data: bytes) -> Any:
    """JSON as Python's objects. Raises InvalidInput for what is not JSON, and for too many values."""
    check_values(data)
    return parse_json(data)


def check_values(data: bytes) -> None:
    """Raise InvalidInput for a text with too many values between commas to be read one by one."""
    if len(data) > LONG_BYTES and commas(memoryview(data)) > MOST_VALUES:
        raise InvalidInput(
            f"the body has more than {MOST_VALUES} values in a form that is read one by one: send lists of numbers "
            "that do not differ in length, for each input, or binary data"
        )


def csv_as_json(data: bytes) -> bytes:
    """Lines of numbers as the JSON of their rows; whatever else becomes JSON that is not a list of lists of numbers."""
    lines = data.replace(b"\r\n", b"\n").strip(b"\n")
    return b"" if b"[" in lines or b"]" in lines else b"[[%b]]" % lines.replace(b"\n", b"],[")


def fields_of(text: msgspec.Raw | memoryview | bytes) -> dict[str, msgspec.Raw] | None:
    """The values of an object, not parsed yet; None for what is not an object."""
    try:
        return _FIELDS.decode(text)
    except _UNFIT:
        return None


def columns_of(text: memoryview) -> dict[str, bytes] | None:
    """The values of each field in a list of objects, as lists; None for what is not that, or if fields differ."""
    try:
        rows = _RECORDS.decode(text)
    except _UNFIT:
        return None
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        return None
    return {name: b"[%b]" % b",".join([memoryview(row[name]) for row in rows]) for name in rows[0]}


class LongNumbers:
    """Reads long lists of numbers for the inputs of one model. May be used from several threads."""

    def __init__(self, interface: Interface, elements: int) -> None:
        self._ports = {
            spec.name: JsonPort(spec, elements)
            for spec in interface.inputs
            if spec.dtype not in NO_JSON_FORM and spec.numpy_dtype.kind in "biuf"
        }

    def array(self, spec: TensorSpec, text: msgspec.Raw | memoryview | bytes) -> Array | None:
        """The array of a long text, of any shape; None for one that is short or holds more than numbers. Raises
        InvalidInput."""
        data = memoryview(text)
        port = self._ports.get(spec.name)
        if port is None or len(data) <= LONG_BYTES or b'"' in bytes(data):
            return None
        try:
            return port.nested(data)
        except _UNFIT:
            raise InvalidInput(
                f"input '{spec.name}': expected {spec.describe()} as lists that do not differ in length, with "
                "numbers alone"
            ) from None
