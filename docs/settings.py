"""Writes the tables of settings in docs/, from their declarations.

`make reference` runs it; a test compares. A page has a pair of marks for each table:
`<!-- settings: NAME -->` and `<!-- end of settings -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.model import PerLevel, PerModel
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import Declared, Group, declared

DOCS = Path(__file__).parent
PAGES = tuple(DOCS / f"{name}.md" for name in ("run", "security", "repository"))
_TABLE = re.compile(
    r"(?<=<!-- settings: )([^\n]*)( -->\n).*?(?=<!-- end of settings -->)", re.DOTALL
)


def with_tables(page: str) -> str:
    """A page with what is between its marks."""
    made = {group.value: _table(_of(group)) for group in Group}
    made["limits"] = _table(declared(Limits).values())
    made["one model"] = _names(n for n in declared(PerModel))
    made["one priority"] = _names(("level", *declared(PerLevel)))
    made["config.pbtxt"] = _triton()
    return _TABLE.sub(lambda match: f"{match[1]}{match[2]}\n{made[match[1]]}\n", page)


def _of(group: Group) -> list[Declared]:
    return [known for known in declared(Settings).values() if known.setting.group is group]


def _table(settings: Iterable[Declared]) -> str:
    rows = (f"| {_label(s)} | {_meaning(s)} | {_default(s)} |\n" for s in settings)
    return "".join(["| setting | meaning | default |\n", "|---|---|---|\n", *rows])


def _label(known: Declared) -> str:
    """The flag with what it takes, and the key where its name is another."""
    setting, name = known.setting, known.name
    if known.type is Limits:
        return f"`[{name}]`"
    if setting.flag is None:
        return f"`[[{name}]]`" if name in ("model", "priority") else f"`{name}`"
    own = f"--{name.replace('_', '-')}"
    flag = (setting.flag or own).replace("/", "`, `")
    value = f" {setting.value_name}" if setting.value_name else ""
    key = "" if own in flag else f", key `{name}`"
    return f"`{flag}{value}`{key}"


def _meaning(known: Declared) -> str:
    setting = known.setting
    parts = [setting.help, setting.more]
    if known.choices:
        parts.append("Values: " + ", ".join(f"`{choice}`" for choice in known.choices))
    if setting.le is not None:
        parts.append(f"Range: {setting.range}")
    if setting.env is not None:
        parts.append(f"Also `{setting.env}`")
    return ". ".join(filter(None, parts))


def _default(known: Declared) -> str:
    if isinstance(known.default, bool):
        return "on" if known.default else "off"
    seconds = known.name.endswith("_s")
    return f"{known.shown_default} s" if seconds else known.shown_default


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) + ".\n"


def _triton() -> str:
    policy = "dynamic_batching.default_queue_policy."
    rows = [
        (name, known.setting.pbtxt, policy if name in declared(PerLevel) else "")
        for name, known in declared(PerModel).items()
        if known.setting.pbtxt is not None
    ]
    lines = (f"| `{where}{field}` | `{name}` |\n" for name, field, where in rows)
    return "".join(["| field | setting |\n", "|---|---|\n", *lines])


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
