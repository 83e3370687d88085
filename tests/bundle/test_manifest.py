"""The manifest survives encoding, and refuses what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.bundle.manifest import decode, encode, is_contained
from edgeserve.errors import BundleError
from tests.bundles import linear_bundle


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundle = linear_bundle(tmp_path_factory.mktemp("manifest"))
    loaded: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return loaded


def test_decoding_what_was_encoded_gives_the_same(document: dict[str, Any]) -> None:
    manifest = decode(json.dumps(document).encode(), "here")
    assert decode(encode(manifest), "there") == manifest


def test_fields_of_a_newer_minor_version_are_ignored(document: dict[str, Any]) -> None:
    newer = {**document, "schema_version": "1.7", "colour": "green"}
    assert decode(json.dumps(newer).encode(), "here").name == "linear"


def test_a_newer_major_version_is_refused_with_a_hint(document: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"schema version 2\.0") as caught:
        decode(json.dumps({**document, "schema_version": "2.0"}).encode(), "here")
    assert "newer edgeserve" in (caught.value.hint or "")


def test_a_wrong_field_is_named_by_its_path(document: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(document))
    broken["variants"][0]["precision"] = "int3"
    with pytest.raises(BundleError) as caught:
        decode(json.dumps(broken).encode(), "here")
    assert "$.variants[0].precision" in (caught.value.cause or "")


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:/x", "", "a\0b", "..", "\\\\host\\x"],
)
def test_paths_that_leave_the_bundle_are_refused(document: dict[str, Any], path: str) -> None:
    broken = json.loads(json.dumps(document))
    broken["variants"][0]["files"][0]["path"] = path
    broken["variants"][0]["main"] = path
    with pytest.raises(BundleError, match="outside the bundle"):
        decode(json.dumps(broken).encode(), "here")


@given(st.text(max_size=40))
def test_a_contained_path_never_resolves_outside(path: str) -> None:
    if is_contained(path):
        root = Path("/bundle")
        assert Path(root, path).is_relative_to(root)
        assert ".." not in Path(path).parts


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=12,
    )
)
@settings(max_examples=200)
def test_any_json_gives_a_bundle_error_and_nothing_else(value: Any) -> None:
    with pytest.raises(BundleError):
        decode(json.dumps(value).encode(), "here")


@given(st.binary(max_size=200))
def test_any_bytes_give_a_bundle_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode(data, "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain": []}, "chain is empty"),
        ({"chain": [{"variant": "no", "runtime": "r", "device": "cpu"}]}, "unknown variant 'no'"),
    ],
)
def test_a_chain_must_refer_to_variants(
    document: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        decode(json.dumps({**document, **change}).encode(), "here")
