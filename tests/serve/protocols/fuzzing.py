"""Damaged bodies, and outputs for whatever request they make, for tests of codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from hypothesis import strategies as st

from edgeserve.serve.models.model import ServedModel
from edgeserve.tensors import Tensors

# What breaks parsers of text, tables, archives and forms.
WORDS: Final = (
    b"[", b"]", b"{", b"}", b",", b'"', b"\n", b"\0", b"\r\n", b"1e400", b"NaN", b"-Infinity", b"null", b"true",
    b"18446744073709551616", b"\xff\xfe", b"\xed\xa0\x80", b'{"b64":"!"}', b"[[[[[[[[", b"instances", b"inputs",
    b"\x93NUMPY", b"PK\x03\x04", b"\xff\xd8\xff", b"--", b"Content-Disposition: form-data", b"binary_data_size",
)  # fmt: skip


def damaged(draw: st.DrawFn, body: bytes, words: Sequence[bytes] = ()) -> bytes:
    """With a few short parts replaced, by words or by anything."""
    anything = st.binary(max_size=4)
    part = st.sampled_from(words) | anything if words else anything
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        end = draw(st.integers(at, min(len(body), at + 12)))
        body = body[:at] + draw(part) + body[end:]
    return body


def computed(model: ServedModel, rows: int) -> Tensors:
    """Outputs of the right types, and not finite where that can be."""
    found: Tensors = {}
    for spec in model.interface.outputs:
        shape = tuple(d if isinstance(d, int) else rows for d in spec.shape)
        if spec.dtype == "BYTES":
            found[spec.name] = np.full(shape, b"\xff", object)
        else:
            fill = np.nan if spec.numpy_dtype.kind == "f" else 1
            found[spec.name] = np.full(shape, fill, spec.numpy_dtype)
    return found
