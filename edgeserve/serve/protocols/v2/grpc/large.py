"""Large messages without copies: their raw tensors are taken from the received bytes as views.

protobuf copies such a field twice, into the message and out of it again.
"""

from __future__ import annotations

from typing import Final

# Field 7, length-delimited: ModelInferRequest.raw_input_contents.
_RAW_INPUT: Final = 7 << 3 | 2
# Messages with more top-level fields are left to protobuf, which is quicker with many small ones.
_MOST_FIELDS: Final = 256
_VARINT_BYTES: Final = 10
_FIXED: Final = {1: 8, 5: 4}  # bytes of a value by wire type


def split(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """A serialized ModelInferRequest without its raw_input_contents, and those as views, in order.

    None for bytes that protobuf has to read as a whole: malformed ones, and those with many fields.
    """
    view, end = memoryview(data), len(data)
    kept: list[memoryview] = []
    blobs: list[memoryview] = []
    position = 0
    while position < end:
        if len(kept) + len(blobs) >= _MOST_FIELDS:
            return None
        start = position
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 2:
            length, position = _varint(data, position)
            body, position = position, position + length
            if tag == _RAW_INPUT:
                if position > end:
                    return None
                blobs.append(view[body:position])
                continue
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            return None
        kept.append(view[start:position])
    return (b"".join(kept), blobs) if position == end else None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where the next field begins; beyond the end when there is none."""
    value = 0
    for index, byte in enumerate(data[position : position + _VARINT_BYTES]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    return 0, len(data) + 1
