from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.names import NAME, name_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resnet50-v1.5_int8", "resnet50-v1.5_int8"),
        ("modèle", "modèle"),
        (unicodedata.normalize("NFD", "modèle"), "modèle"),
        ("模型 (v2)", "模型-v2"),
        ("..hidden", "hidden"),
        ("_", "model"),
        ("a/b\n<c>", "a-b-c"),
        ("x" * 200, "x" * 128),
    ],
)
def test_a_file_name_becomes_the_closest_name(text: str, name: str) -> None:
    assert name_of(text) == name


@given(st.text())
def test_every_text_becomes_a_valid_name(text: str) -> None:
    name = name_of(text)
    assert NAME.fullmatch(name)
    assert name_of(name) == name


@pytest.mark.parametrize(
    "text", ["", ".", "..", "-x", "_x", "a/b", "a b", "a\n", "a%2f", "x" * 129]
)
def test_what_has_no_place_in_a_url_is_not_a_name(text: str) -> None:
    assert not NAME.fullmatch(text)
