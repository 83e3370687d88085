"""The reader of protobuf's text format: against protobuf's own writer, on damaged text, and on Triton's idioms."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf import json_format, struct_pb2, text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.serve.settings.textproto import MAX_BYTES, Message, Scalar, read


def plain(message: Message) -> object:
    """What a message says, as protobuf's own reader would have it in a google.protobuf.Struct."""
    fields = {}
    for field in message.all("fields"):
        assert isinstance(field, Message)
        value = field.message("value")
        fields[field.text("key") or ""] = plain_value(value or Message())
    return fields


def plain_value(value: Message) -> object:
    ((name, content),) = value.fields
    if name == "struct_value":
        assert isinstance(content, Message)
        return plain(content)
    if name == "list_value":
        assert isinstance(content, Message)
        return [plain_value(v) for v in content.all("values") if isinstance(v, Message)]
    if name == "null_value":
        return None
    if name == "number_value":
        assert isinstance(content, int | float)
        return float(content)
    return content


documents = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=20) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@given(documents, st.booleans(), st.booleans())
@settings(deadline=None)
def test_what_protobuf_writes_is_read(
    document: dict[str, object], one_line: bool, as_utf8: bool
) -> None:
    message = json_format.ParseDict(document, struct_pb2.Struct(), ignore_unknown_fields=False)
    text = text_format.MessageToString(message, as_one_line=one_line, as_utf8=as_utf8)
    assert plain(read(text)) == document


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: 1", [1]),
        ("a: -0x1F", [-31]),
        ("a: 017", [15]),
        ("a: 1.5e3 a: 2f a: .5", [1500.0, 2.0, 0.5]),
        ("a: inf a: -Infinity", [float("inf"), float("-inf")]),
        ("a: true, a: false;", [True, False]),
        ("a: TYPE_FP32", ["TYPE_FP32"]),
        ("a: 'it' \"'s\"", ["it's"]),
        (r'a: "\n\101\x41\u0041\\"', ["\nAAA\\"]),
        ("a: [1, 2]a:3", [1, 2, 3]),
        ("a: []", []),
        ("# nothing\n a: 1 # more", [1]),
    ],
)
def test_scalars(text: str, values: list[Scalar]) -> None:
    assert read(text).all("a") == values


@pytest.mark.parametrize("text", ["a { b: 1 }", "a: { b: 1 }", "a < b: 1 >", "a: [{ b: 1 }]"])
def test_messages(text: str) -> None:
    inner = read(text).message("a")
    assert inner is not None
    assert inner.integer("b") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "line 1: expected ':' or a message"),
        ("a:", "expected a value, got the end"),
        ("a: 1\n}", "line 2: expected a field, got }"),
        ("a {", "expected }, got the end"),
        ("a: [1", "expected ',' or ']'"),
        ("a: 09", "expected a number, got 09"),
        ("a: 'x", "cannot read"),
        ("a { " * 40, "nested deeper"),
        ("-a: 1", "expected a field"),
        ("a: $", "cannot read"),
        (" " * (MAX_BYTES + 1), "more than a configuration can have"),
    ],
)
def test_mistakes_name_the_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.integer("text"), lambda m: m.text("number"), lambda m: m.flag("number"),
        lambda m: m.message("number"), lambda m: m.integers("text"), lambda m: m.integer("flag"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(ask: object) -> None:
    message = read("number: 2 text: 'x' flag: true")
    with pytest.raises(UsageError, match="expected"):
        ask(message)  # type: ignore[operator]


@given(st.text(alphabet="abc01-.:,;{}<>[]\"'\\#\n x", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        read(text)
