"""Settings from flags and from a serve.toml: what is taken, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.serve.settings.reading import read_settings, settings_from
from edgeserve.serve.settings.server import Settings


def test_a_bundle_is_enough() -> None:
    settings = settings_from({"bundle": "model.edge"})
    assert settings == Settings(bundle="model.edge")
    assert (settings.host, settings.http_port, settings.fallback) == ("localhost", 8000, "auto")


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"http_port": "8000"}, "http_port", "int"),
        ({"http_port": 80.5}, "http_port", "int"),
        ({"batching": 1}, "batching", "bool"),
        ({"timeout": "1s"}, "timeout", "float"),
        ({"name": 7}, "name", "str"),
        ({"fallback": "maybe"}, "fallback", "maybe"),
        ({"insecure": "yes"}, "insecure", "bool"),
        ({"bundle": ["a.edge", "b.edge"]}, "bundle", "str"),
        ({"preferred_batches": 4}, "preferred_batches", "array"),
        ({"memory_budget": 1.5}, "memory_budget", "int"),
        ({"model": [{"bundle": "b.edge", "threads": "two"}]}, "model", "int"),
    ],
)
def test_wrong_types_name_the_key_and_what_was_expected(
    values: dict[str, Any], key: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=r"serve\.toml cannot be used") as caught:
        settings_from({"bundle": "model.edge", **values}, "serve.toml")
    assert key in (caught.value.cause or "")
    assert expected in (caught.value.cause or "")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("http_prot", "did you mean 'http_port'?"),
        ("instance", "did you mean 'instances'?"),
        ("zzz", None),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest_neighbour(key: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        settings_from({"bundle": "model.edge", key: 1}, "serve.toml")
    assert caught.value.message == f"serve.toml: unknown key '{key}'"
    assert caught.value.hint == hint


def test_a_model_s_table_has_the_last_word(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'repository = "models"\nqueue = 7\nthreads = 1\n'
        '[[model]]\nbundle = "a.edge"\nname = "first"\nqueue = 9\n'
        '[[model]]\nname = "second"\nbatching = false\n'
    )
    settings = read_settings(file, {"threads": 2})
    assert settings.repository == str(tmp_path / "models")
    first, second = settings.model
    assert first.bundle == str(tmp_path / "a.edge")
    assert (settings.of(first).queue, settings.of(first).threads) == (9, 2)
    assert (settings.of(second).queue, settings.of(second).batching) == (7, False)
    file.write_text('bundle = "a.edge"\n[[model]]\nquue = 9\n')
    with pytest.raises(UsageError, match="unknown key 'quue'") as caught:
        read_settings(file, {})
    assert caught.value.hint == "did you mean 'queue'?"


def test_a_relative_bundle_is_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "serve.toml"
    file.parent.mkdir()
    file.write_text('bundle = "../models/m.edge"\nhttp_port = 0\n')
    settings = read_settings(file, {})
    assert Path(settings.bundle) == file.parent / "../models/m.edge"
    file.write_text('bundle = "/models/m.edge"\n')
    assert read_settings(file, {}).bundle == "/models/m.edge"


def test_flags_win_over_the_file_and_none_is_no_flag(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('bundle = "m.edge"\nhttp_port = 9000\nbatching = true\nqueue = 7\n')
    flags = {"bundle": "other.edge", "http_port": 0, "batching": False, "queue": None}
    settings = read_settings(file, flags)
    assert settings == Settings(bundle="other.edge", http_port=0, batching=False, queue=7)


def test_a_file_may_leave_the_bundle_to_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("http_port = 0\n")
    assert read_settings(file, {"bundle": "m.edge"}).bundle == "m.edge"
    with pytest.raises(UsageError, match="no bundle to serve"):
        read_settings(file, {"bundle": None})


@pytest.mark.parametrize("content", [None, b"bundle = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "serve.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"serve\.toml is not a readable TOML file") as caught:
        read_settings(file, {})
    assert caught.value.cause
    assert caught.value.exit_code == 2


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    for text in ('bundle = "m"\nhttp-port = 1\n', 'bundle = "m"\nhttp_port = "x"\n'):
        file.write_text(text)
        with pytest.raises(UsageError) as caught:
            read_settings(file, {})
        assert str(file) in caught.value.message


positive = st.integers(1, 1 << 40)
seconds = st.floats(0, 1e9)
words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)


@given(
    st.builds(
        Settings,
        bundle=words,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
        host=st.sampled_from(["127.0.0.1", "::1", "localhost"]),
        http_port=st.integers(0, 65535),
        fallback=st.sampled_from(["auto", "never"]),
        threads=st.integers(0, 256),
        instances=positive,
        spin=st.booleans(),
        batching=st.booleans(),
        queue=positive,
        timeout=seconds,
        max_body=positive,
        drain_timeout=seconds,
        insecure=st.booleans(),
    )
)
def test_settings_survive_being_written_as_toml(settings: Settings) -> None:
    values = {k: v for k, v in msgspec.structs.asdict(settings).items() if v is not None}
    del values["limits"]  # a table of its own
    folder_free = msgspec.toml.decode(toml(values))
    assert settings_from(folder_free) == settings


def toml(values: dict[str, Any]) -> str:
    """Flat TOML; JSON's strings, numbers and booleans are also TOML's."""
    lines = [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in values.items()]
    return "\n".join(lines)
