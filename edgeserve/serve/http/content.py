"""gzip and deflate of bodies, both ways, bounded (RFC 9110, sections 8.4 and 12.5.3)."""

from __future__ import annotations

import zlib
from typing import Any, Final

from edgeserve.errors import InvalidInput
from edgeserve.serve.settings.limits import Limits

CODINGS: Final = ("gzip", "deflate")
_WBITS: Final = {"gzip": 31, "deflate": 15}
# Inflated bytes from which the ratio is checked; smaller bodies may have any.
_RATIO_FROM: Final = 65_536
_STEP: Final = 1 << 20
_LEVEL: Final = 1  # most of the gain for a third of the time


class BodyTooLarge(Exception):
    """A body, or what it inflates to, is larger than the limit that the message names."""


def inflate(coding: str, body: bytes | memoryview, limits: Limits) -> bytes:
    """The content of a compressed body. Raises InvalidInput, BodyTooLarge."""
    most = limits.inflated_bytes or limits.body_bytes
    stream = zlib.decompressobj(_WBITS[coding])
    parts: list[bytes] = []
    size, data = 0, bytes(body)
    try:
        while not stream.eof:
            part = stream.decompress(data, _STEP)
            size += len(part)
            if size > most:
                raise BodyTooLarge(f"the inflated body is larger than {most} bytes")
            consumed = len(body) - len(stream.unconsumed_tail)
            if size > _RATIO_FROM and size > limits.inflated_ratio * consumed:
                raise BodyTooLarge(
                    f"the body grows more than {limits.inflated_ratio} times when it is inflated"
                )
            data = stream.unconsumed_tail
            parts.append(part)
            if not part and not data:
                break
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding}: {error}") from None
    if not stream.eof:
        raise InvalidInput(f"the {coding} body ends too early")
    if stream.unused_data:
        raise InvalidInput(f"{len(stream.unused_data)} bytes follow the {coding} body")
    return b"".join(parts)


def deflate(coding: str, parts: list[Any]) -> bytes:
    """The parts of an answer, compressed."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[coding])
    return b"".join([*(stream.compress(part) for part in parts), stream.flush()])


def accepted_coding(header: bytes | None) -> str | None:
    """The coding a client prefers among ours, from Accept-Encoding; None: as it is."""
    if not header:
        return None
    weights: dict[str, float] = {}
    for item in header.decode("latin-1").lower().split(",")[:32]:
        name, _, parameters = item.partition(";")
        weights[name.strip()] = _weight(parameters)
    anything = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda c: weights.get(c, anything))  # gzip if both are equal
    weight = weights.get(best, anything)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
