"""Reads protocol buffers' text format without a schema, for Triton's `config.pbtxt`.

Protobuf's own reader needs the compiled schema of every message it meets, and refuses files written for a
newer one. Source: https://protobuf.dev/reference/protobuf/textformat-spec/ (extensions and `Any` apart).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from edgeserve.errors import UsageError

MAX_DEPTH: Final = 32
MAX_BYTES: Final = 1 << 20

Scalar = str | int | float | bool

_TOKEN: Final = re.compile(
    r"""\s+|\#[^\n]*
    |(?P<number>-?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)(?![\w.]))
    |(?P<word>-?[A-Za-z_][A-Za-z0-9_]*)
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    |(?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(
    rb"\\(?:([abfnrtv\\'\"?])|([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))"
)
_SIMPLE: Final = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
}  # fmt: skip
_CLOSING: Final = {"{": "}", "<": ">"}


class Message:
    """The fields of one message in order; a repeated field is there several times."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, Scalar | Message]] = []

    def all(self, name: str) -> list[Scalar | Message]:
        return [value for field, value in self.fields if field == name]

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.fields))

    def message(self, name: str) -> Message | None:
        """The last message of that name. Raises UsageError for a scalar."""
        found = self.all(name)
        if not found:
            return None
        if not isinstance(found[-1], Message):
            raise UsageError(f"{name}: expected a message, got {found[-1]!r:.40}")
        return found[-1]

    def integer(self, name: str) -> int | None:
        found = self.all(name)
        if not found:
            return None
        if isinstance(found[-1], bool) or not isinstance(found[-1], int):
            raise UsageError(f"{name}: expected a whole number, got {found[-1]!r:.40}")
        return found[-1]

    def integers(self, name: str) -> tuple[int, ...]:
        values = self.all(name)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name}: expected whole numbers, got {value!r:.40}")
        return tuple(v for v in values if isinstance(v, int))

    def text(self, name: str) -> str | None:
        found = self.all(name)
        if not found:
            return None
        if not isinstance(found[-1], str):
            raise UsageError(f"{name}: expected a string, got {found[-1]!r:.40}")
        return found[-1]

    def flag(self, name: str) -> bool | None:
        found = self.all(name)
        if not found:
            return None
        known = {True: True, False: False, "t": True, "f": False}  # 1 and 0 are equal to these
        value = found[-1]
        if isinstance(value, Message) or value not in known:
            raise UsageError(f"{name}: expected true or false, got {value!r:.40}")
        return known[value]


def read(text: str) -> Message:
    """Parse a document. Raises UsageError with the line."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{len(text)} characters are more than a configuration can have")
    return _Parser(text).message(None, 0)


class _Token:
    __slots__ = ("kind", "line", "text")

    def __init__(self, kind: str, text: str, line: int) -> None:
        self.kind = kind
        self.text = text
        self.line = line


def _tokens(text: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UsageError(f"line {line}: cannot read {text[position : position + 20]!r}")
        if match.lastgroup is not None:
            yield _Token(match.lastgroup, match[0], line)
        line += match[0].count("\n")
        position = match.end()
    yield _Token("end", "the end", line)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def message(self, closing: str | None, depth: int) -> Message:
        if depth > MAX_DEPTH:
            raise UsageError(f"line {self._next.line}: messages nested deeper than {MAX_DEPTH}")
        message = Message()
        while True:
            token = self._take()
            if token.kind == "end" or token.text == closing:
                if (token.kind == "end") != (closing is None):
                    raise _expected(closing or "a field", token)
                return message
            if token.kind != "word" or token.text.startswith("-"):
                raise _expected("a field", token)
            message.fields += [(token.text, value) for value in self._values(depth)]
            while self._next.text in (",", ";"):
                self._take()

    def _values(self, depth: int) -> list[Scalar | Message]:
        colon = self._next.text == ":"
        if colon:
            self._take()
        if self._next.text in _CLOSING and self._next.kind == "mark":
            return [self.message(_CLOSING[self._take().text], depth + 1)]
        if self._next.text == "[" and self._next.kind == "mark":
            self._take()
            return self._list(depth)
        if not colon:
            raise _expected("':' or a message", self._next)
        return [self._scalar()]

    def _list(self, depth: int) -> list[Scalar | Message]:
        values: list[Scalar | Message] = []
        if self._next.text == "]":
            self._take()
            return values
        while True:
            if self._next.text in _CLOSING and self._next.kind == "mark":
                values.append(self.message(_CLOSING[self._take().text], depth + 1))
            else:
                values.append(self._scalar())
            token = self._take()
            if token.text == "]":
                return values
            if token.text != ",":
                raise _expected("',' or ']'", token)

    def _scalar(self) -> Scalar:
        token = self._take()
        if token.kind == "string":
            data = _unescaped(token)
            while self._next.kind == "string":
                data += _unescaped(self._take())
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError:
                raise _expected("UTF-8", token) from None
        if token.kind == "number":
            return _number(token)
        if token.kind == "word":
            return {"true": True, "True": True, "false": False, "False": False}.get(
                token.text, _special(token.text)
            )
        raise _expected("a value", token)


def _expected(what: str, token: _Token) -> UsageError:
    return UsageError(f"line {token.line}: expected {what}, got {token.text:.40}")


def _special(word: str) -> str | float:
    """Words are names of enums, but for the floats without digits."""
    if word.lstrip("-").lower() in ("inf", "infinity", "nan"):
        return float(word)
    return word


def _number(token: _Token) -> int | float:
    text = token.text.lower()
    digits = text.lstrip("-")
    try:
        if digits.startswith("0x"):
            return int(text, 16)
        if digits.isdigit():
            return int(text, 8 if digits.startswith("0") and len(digits) > 1 else 10)
        return float(text.rstrip("f"))
    except ValueError:
        raise _expected("a number", token) from None


def _unescaped(token: _Token) -> bytes:
    """The bytes of a string: octal and hexadecimal escapes are bytes, of UTF-8 as all else."""

    def one(match: re.Match[bytes]) -> bytes:
        simple, octal, hexadecimal, *codes = match.groups()
        if simple is not None:
            return _SIMPLE.get(simple, simple)
        if octal or hexadecimal:
            code = int(octal, 8) if octal else int(hexadecimal, 16)
            return bytes([code & 0xFF])
        code = int(next(c for c in codes if c), 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise _expected("a character", token)
        return chr(code).encode()

    return _ESCAPE.sub(one, token.text[1:-1].encode("utf-8", "surrogatepass"))
