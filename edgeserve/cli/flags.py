"""Options of a command that are derived from declared settings, in sections by group.

They are made when the command is used or its help is printed: `edgeserve --help` imports no settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from edgeserve.serve.settings.setting import Declared

_OTHERS: Final = "Other options"


class SettingsCommand(TyperCommand):
    """A command that calls `function` with its own parameters, and with one for each setting of the struct
    that `settings` returns (None: not given)."""

    function: Callable[..., Any]
    settings: Callable[[], Any]

    @cached_property
    def _made(self) -> Any:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command()(_with_options(type(self).function, type(self).settings()))
        return typer.main.get_command(app)

    @property
    def params(self) -> Any:
        return self._made.params

    @params.setter
    def params(self, given: Any) -> None:
        """Nothing was given: the command was registered without parameters."""

    @property
    def callback(self) -> Any:
        return self._made.callback

    @callback.setter
    def callback(self, given: Any) -> None:
        """As `params`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                section = (
                    "Arguments" if argument else getattr(param, "rich_help_panel", None) or _OTHERS
                )
                sections.setdefault(section, []).append(record)
        for section, records in sorted(sections.items(), key=lambda s: s[0] == _OTHERS):
            with formatter.section(section):
                formatter.write_dl(records)


def values_of(options: dict[str, Any]) -> dict[str, Any]:
    """Settings from the values of options, which are None where they were not given."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value] or None
        return str(value) if isinstance(value, StrEnum | Path) else value

    return {name: plain(value) for name, value in options.items()}


def _with_options(function: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """The function with a parameter for each setting, which it takes as keywords."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

    def command(**given: Any) -> Any:
        return function(**given)

    command.__signature__ = signature.replace(parameters=[*own, *_options(settings)])  # type: ignore[attr-defined]
    return command


def _options(settings: Any) -> Iterator[inspect.Parameter]:
    """Options of all settings that have a flag: by group, in the order of their declaration."""
    from edgeserve.serve.settings.setting import Group, declared

    known = [d for d in declared(settings).values() if d.setting.flag is not None]
    groups = list(Group)
    for each in sorted(known, key=lambda d: groups.index(d.setting.group)):
        yield inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_type_of(each) | None, _option(each)],
        )


def _option(known: Declared) -> Any:
    setting = known.setting
    default = known.shown_default
    return typer.Option(
        setting.flag or f"--{known.name.replace('_', '-')}",
        help=f"{setting.help} [{default}]." if default else f"{setting.help}.",
        metavar=setting.value_name,
        envvar=setting.env,
        rich_help_panel=setting.group,
    )


def _type_of(known: Declared) -> Any:
    """What the option takes: several values of a tuple's type, one of a literal's, a text for a size."""
    for part in known.parts:
        if get_origin(part) is tuple:
            return list[get_args(part)[0]]  # type: ignore[misc]
    if known.choices:
        return StrEnum(known.name, [(choice, choice) for choice in known.choices])
    if known.setting.unit == "path":
        return Path
    return str if str in known.parts else known.parts[0]
