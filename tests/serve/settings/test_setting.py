"""Settings are declared once: what follows from the declarations."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import msgspec
import pytest
import typer

from edgeserve.chain import ChainOptions
from edgeserve.cli.commands import command_line
from edgeserve.errors import UsageError
from edgeserve.serve.engine import EngineSettings, LevelSettings
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.model import ModelTable, PerLevel, PerModel, PriorityTable
from edgeserve.serve.settings.reading import SERVER_FIELDS
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import (
    Group,
    Setting,
    Unit,
    check,
    declared,
    said,
    size_bytes,
    taken,
)

ALL = [*declared(Settings).values(), *declared(Limits).values()]


@pytest.mark.parametrize("kind", [Settings, Limits, PerModel, PerLevel])
def test_every_field_is_declared(kind: type[msgspec.Struct]) -> None:
    assert set(declared(kind)) == set(kind.__struct_fields__)


def test_defaults_are_within_their_bounds() -> None:
    values = [
        (d, v) for d in ALL for v in (d.default if isinstance(d.default, tuple) else [d.default])
    ]
    assert [d.setting.problem(d.name, v) for d, v in values if d.setting.problem(d.name, v)] == []


def test_the_help_of_a_flag_is_one_line() -> None:
    lines = [f"{d.setting.help} [{d.shown_default}]." for d in ALL if d.setting.flag is not None]
    assert [line for line in lines if "\n" in line or len(line) > 100 or ".." in line] == []


@pytest.mark.parametrize(
    ("table", "base", "own"),
    [(ModelTable, PerModel, {"bundle", "name"}), (PriorityTable, PerLevel, {"level"})],
)
def test_a_table_has_the_settings_of_its_scope_and_leaves_them_out(
    table: Any, base: type[msgspec.Struct], own: set[str]
) -> None:
    assert set(table.__struct_fields__) == set(base.__struct_fields__) | own
    first = table(1) if base is PerLevel else table()
    assert set(said(first)) == own
    assert msgspec.to_builtins(first) == ({"level": 1} if base is PerLevel else {})


@pytest.mark.parametrize("kind", [EngineSettings, LevelSettings, ChainOptions])
def test_what_is_taken_of_settings_has_their_types(kind: type[msgspec.Struct]) -> None:
    """So that two declarations cannot drift apart."""
    own = {"fallback", "queue"}  # a bool of two words; None: the model's
    for field, type_ in get_type_hints(kind).items():
        known = declared(Settings).get(field) or declared(Settings).get(field.removesuffix("_s"))
        if known is not None and field not in own:
            assert type_ == known.type, field


def test_taken_fills_fields_by_name_and_without_their_unit() -> None:
    class Wanted(msgspec.Struct):
        timeout_s: float
        queue: int
        more: str

    settings = Settings(bundle="m.edge", timeout=2.5, queue=7)
    assert taken(Wanted, settings, more="x", queue=8) == Wanted(2.5, 8, "x")


def test_every_setting_has_its_flag_in_the_section_of_its_group() -> None:
    group: Any = typer.main.get_command(command_line())
    options = {p.name: p for p in group.commands["run"].params}
    with_flag = {n: d for n, d in declared(Settings).items() if d.setting.flag is not None}
    assert set(options) - {"bundles", "config"} == set(with_flag)
    assert {n: options[n].rich_help_panel for n in with_flag} == {
        n: d.setting.group for n, d in with_flag.items()
    }
    assert options["preferred_batches"].opts == ["--preferred-batch"]
    assert options["spin"].secondary_opts == ["--no-spin"]
    assert {n for n, o in options.items() if o.envvar} == {"host", "http_port", "grpc_port"}


def test_a_running_server_follows_what_is_about_models() -> None:
    assert {"host", "workers", "limits", "keys", "load", "readiness"} <= set(SERVER_FIELDS)
    models = {"bundle", "bundles", "repository", "model", "name", *PerModel.__struct_fields__}
    assert not models & set(SERVER_FIELDS)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (Setting(Group.WHAT, "h", ge=1), 0, "x 0 is not a valid number: expected 1 or more"),
        (Setting(Group.WHAT, "h", gt=0), 0.0, "x 0.0 is not a valid number: expected more than 0"),
        (
            Setting(Group.WHAT, "h", Unit.SECONDS, ge=0, le=10), 11,
            "x 11 is not a valid number of seconds: expected 0 to 10",
        ),
        (
            Setting(Group.WHAT, "h", Unit.PORT, ge=0, le=65535), -1,
            "x -1 is not a valid port: expected 0 to 65535",
        ),
        (Setting(Group.WHAT, "h", ge=0), math.nan, "x nan is not a valid number: expected 0 or more"),
        (Setting(Group.WHAT, "h", ge=0), math.inf, "x inf is not a valid number: expected 0 or more"),
        (
            Setting(Group.WHAT, "h", pattern="a+", expected="some a"), "b",
            "x 'b' is not valid: expected some a",
        ),
        (Setting(Group.WHAT, "h", ge=0), None, None),
        (Setting(Group.WHAT, "h", ge=2), True, None),
        (Setting(Group.WHAT, "h"), -5, None),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_named_with_what_is_expected(
    setting: Setting, value: object, words: str | None
) -> None:
    assert setting.problem("x", value) == words


def test_each_of_several_values_is_checked_and_named_with_its_table() -> None:
    with pytest.raises(UsageError, match="here: preferred_batches 0 is not a valid number"):
        check(PerModel(preferred_batches=(4, 0)), "here: ")


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
