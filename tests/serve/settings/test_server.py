"""Settings from flags and from a serve.toml: what is taken, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.serve.access.keys import is_loopback
from edgeserve.serve.settings.reading import read_settings, settings_from
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import size_bytes


def test_a_bundle_is_enough() -> None:
    settings = settings_from({"bundle": "model.edge"})
    assert settings == Settings(bundle="model.edge")
    assert (settings.host, settings.http_port, settings.fallback) == ("localhost", 8000, "auto")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"http_port": -1}, "http_port -1 is not a valid port: expected 0 to 65535"),
        ({"http_port": 65536}, "http_port 65536 is not a valid port"),
        ({"instances": -1}, "instances -1 is not a valid number: expected 0 or more"),
        ({"max_batch": -1}, "max_batch -1 is not a valid number"),
        (
            {"batch_delay": 11},
            "batch_delay 11.0 is not a valid number of seconds: expected 0 to 10",
        ),
        (
            {"preferred_batches": [0]},
            "preferred_batches 0 is not a valid number: expected 1 or more",
        ),
        ({"priority_levels": 0}, "priority_levels 0 is not a valid number: expected 1 to 1000"),
        ({"default_priority": 2}, "default_priority must be 1 to priority_levels"),
        ({"priority": [{"level": 2}]}, "level 2: level must be 1 to priority_levels"),
        (
            {"priority": [{"level": 1, "queue": 0}]},
            "level 1: queue 0 is not a valid number",
        ),
        ({"priority": [{"level": 1, "timeout": -1}]}, "level 1: timeout -1.0 is not a valid"),
        ({"priority": [{"level": 1}, {"level": 1}]}, "tables are about the same level"),
        ({"weight": 0}, "weight 0.0 is not a valid number: expected more than 0"),
        ({"versions": "newest"}, "versions 'newest' is not valid: expected latest"),
        ({"memory_budget": "2 gigs"}, "memory_budget '2 gigs' is not a valid size"),
        ({"cache": -1}, "cache '-1' is not a valid size"),
        ({"name": "../x"}, "cannot be a model's name"),
        ({"name": "x", "bundles": ["b.edge"]}, "name is for one bundle"),
        (
            {"model": [{"bundle": "b.edge", "queue": 0}]},
            "queue 0 is not a valid number: expected 1 or more",
        ),
        ({"queue": 0}, "queue 0 is not a valid number: expected 1 or more"),
        ({"max_body": 0}, "max_body 0 is not a valid number of bytes"),
        ({"threads": -1}, "threads -1 is not a valid number"),
        ({"timeout": -0.5}, "timeout -0.5 is not a valid number of seconds: expected 0 or more"),
        ({"drain_timeout": -1}, "drain_timeout -1.0 is not a valid number of seconds"),
        ({"host": "0.0.0.0"}, "0.0.0.0 is open to the network"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        settings_from({"bundle": "model.edge", **values})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", ["timeout", "drain_timeout"])
def test_not_a_number_is_no_time(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        settings_from({"bundle": "model.edge", key: float("nan")})


@pytest.mark.parametrize(
    "values",
    [
        {"http_port": 0},
        {"http_port": 65535},
        {"instances": 0},
        {"queue": 1},
        {"max_body": 1},
        {"threads": 0},
        {"timeout": 0},
        {"drain_timeout": 0.0},
    ],
)
def test_the_bounds_themselves_are_taken(values: dict[str, Any]) -> None:
    settings = settings_from({"bundle": "model.edge", **values})
    assert {k: getattr(settings, k) for k in values} == values


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


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (0, 0),
        (7, 7),
        ("0", 0),
        ("1500", 1500),
        ("2GB", 2_000_000_000),
        ("2GiB", 2 << 30),
        ("1.5 MB", 1_500_000),
        ("64KiB", 65536),
        ("1k", 1000),
        ("3T", 3_000_000_000_000),
    ],
)
def test_sizes(text: int | str, wanted: int) -> None:
    assert size_bytes(text, "cache") == wanted


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


def test_no_bundle_says_both_ways_to_name_one() -> None:
    with pytest.raises(UsageError, match="no bundle is named") as caught:
        settings_from({"http_port": 0})
    assert "edgeserve run NAME.edge" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    assert is_loopback(host)
    assert settings_from({"bundle": "model.edge", "host": host}).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.7", "fe80::1", "example.org", "localhost.evil.org",
     "127.0.0.1.nip.io", "0", "127.1", "2130706433"],
)  # fmt: skip
def test_every_other_host_needs_insecure(host: str) -> None:
    with pytest.raises(UsageError, match="open to the network") as caught:
        settings_from({"bundle": "model.edge", "host": host})
    assert "--insecure" in (caught.value.hint or "")
    assert settings_from({"bundle": "model.edge", "host": host, "insecure": True}).host == host


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
    with pytest.raises(UsageError, match="no bundle is named"):
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


@pytest.mark.parametrize(("own", "levels"), [({}, [3]), ({"priority": [{"level": 2}]}, [2])])
def test_tables_about_priorities_that_a_model_does_not_have_are_not_for_it(
    own: dict[str, object], levels: list[int]
) -> None:
    settings = settings_from(
        {
            "bundle": "a.edge", "priority_levels": 3, "priority": [{"level": 3, "queue": 9}],
            "model": [{"name": "m", "bundle": "b.edge", "priority_levels": 2, **own}],
        }
    )  # fmt: skip
    settings.check()
    assert [p.level for p in settings.priority] == [3]
    assert [p.level for p in settings.of(settings.model[0]).priority] == levels[: bool(own)]
