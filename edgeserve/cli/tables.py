"""Plain tables, for commands that list things."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table_of(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table without borders; the columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add cells as they are: engines' messages hold brackets, which are no markup."""
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))
