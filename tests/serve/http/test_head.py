"""Heads that are recognised instead of parsed mean what they would mean if they were parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.serve.http.head import Head, KnownHead, Refused, parse_head
from edgeserve.serve.settings.limits import Limits

LIMITS = Limits()
MOST = 1 << 40
LINES = (
    b"POST /v2/models/m/infer HTTP/1.1",
    b"Host: t",
    b"X-Api-Key: secret",
    b"Inference-Header-Content-Length: 12",
)


def head(name: bytes, length: bytes, place: int, lines: tuple[bytes, ...] = LINES) -> bytes:
    """The lines with a Content-Length among them."""
    all_lines = [*lines[:place], name + length, *lines[place:]]
    return b"\r\n".join(all_lines) + b"\r\n\r\n"


def meaning(parsed: Head) -> tuple[object, ...]:
    headers = {k: v for k, v in parsed.headers.items() if k != b"content-length"}
    return (
        parsed.method, parsed.path, headers, parsed.length, parsed.keep_alive,
        parsed.expects_continue, parsed.aligned_at,
    )  # fmt: skip


names = st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH: \t"])
places = st.integers(1, len(LINES))


@given(names, places, st.integers(0, MOST), st.integers(0, MOST))
def test_another_length_is_recognised(name: bytes, place: int, first: int, second: int) -> None:
    raw = head(name, b"%d" % first, place)
    known = KnownHead(raw, parse_head(raw, LIMITS), MOST)
    other = head(name, b"%d" % second, place)
    assert known.find(bytearray(other + b"{}")) == len(other)
    assert meaning(known.head) == meaning(parse_head(other, LIMITS))
    assert known.find(bytearray(raw)) == len(raw)
    assert meaning(known.head) == meaning(parse_head(raw, LIMITS))


def test_a_body_that_is_too_large_is_not_recognised() -> None:
    raw = head(b"Content-Length: ", b"34", 2)
    known = KnownHead(raw, parse_head(raw, LIMITS), 40)
    assert known.find(bytearray(head(b"Content-Length: ", b"40", 2)))
    assert not known.find(bytearray(head(b"Content-Length: ", b"41", 2)))


@given(names, places, st.data())
def test_what_is_recognised_would_have_been_parsed_so(
    name: bytes, place: int, data: st.DataObject
) -> None:
    raw = head(name, b"34", place)
    known = KnownHead(raw, parse_head(raw, LIMITS), MOST)
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    end = known.find(changed)
    if end:
        assert meaning(known.head) == meaning(parse_head(bytes(changed[:end]), LIMITS))


@pytest.mark.parametrize(
    "length", [b"", b" ", b"+3", b"-3", b"3 3", b"0x3", b"3,3", b"1" * 19, b"3\r\nA: b"]
)
def test_what_is_no_length_is_not_recognised(length: bytes) -> None:
    raw = head(b"Content-Length: ", b"34", 2)
    known = KnownHead(raw, parse_head(raw, LIMITS), MOST)
    assert known.find(bytearray(head(b"Content-Length: ", length, 2))) == 0


def test_a_length_of_eighteen_digits_is_the_longest() -> None:
    raw = head(b"Content-Length: ", b"34", 2)
    known = KnownHead(raw, parse_head(raw, LIMITS), 10**18)
    longest = head(b"Content-Length: ", b"1" * 18, 2)
    assert known.find(bytearray(longest)) == len(longest)
    with pytest.raises(Refused):
        parse_head(head(b"Content-Length: ", b"1" * 19, 2), LIMITS)


def test_without_a_length_only_the_same_bytes_are_recognised() -> None:
    raw = b"\r\n".join(LINES) + b"\r\n\r\n"
    known = KnownHead(raw, parse_head(raw, LIMITS), MOST)
    assert known.find(bytearray(raw)) == len(raw)
    assert known.find(bytearray(head(b"Content-Length: ", b"0", 2))) == 0
    assert known.find(bytearray(raw[:-1])) == 0


def test_what_was_routed_stays_so_under_another_length() -> None:
    raw = head(b"Content-Length: ", b"34", 2)
    known = KnownHead(raw, parse_head(raw, LIMITS), MOST)
    first = known.head
    first.route = object()
    known.find(bytearray(head(b"Content-Length: ", b"5", 2)))
    assert known.head.route is first.route
    assert (first.length, known.head.length) == (34, 5)
