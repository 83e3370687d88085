"""Writes what is derived from the lists of HTTP routes: docs/openapi.json, and the table in docs/protocols.md.

`make reference` runs it; a test compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from edgeserve.serve.fronts.protocols import route_lists
from edgeserve.serve.http.route import shown
from edgeserve.serve.protocols.openapi import document
from edgeserve.serve.settings.protocols import PROTOCOLS

DOCS = Path(__file__).parent
LISTS = route_lists(PROTOCOLS)
OPENAPI = DOCS / "openapi.json"
PAGE = DOCS / "protocols.md"
_TABLE = re.compile(r"(?<=<!-- routes -->\n).*?(?=<!-- end of routes -->)", re.DOTALL)


def openapi() -> str:
    """The text of docs/openapi.json."""
    return json.dumps(document(LISTS), indent=1) + "\n"


def with_table(page: str) -> str:
    """A page with the table of all routes between its marks."""
    rows = [
        f"| `{route.method} {shown(route.path)}` | {route.role.value} | {route.summary} |\n"
        for listed in LISTS
        for route in listed.routes
        if route.summary
    ]
    table = "".join(["| route | role | result |\n", "|---|---|---|\n", *rows])
    found, count = _TABLE.subn(lambda match: f"\n{table}\n", page)
    assert count == 1, "the page has no marks for the table"
    return found


if __name__ == "__main__":
    OPENAPI.write_text(openapi(), "utf-8")
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
