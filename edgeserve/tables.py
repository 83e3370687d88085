"""Plain tables and lines, for whatever lists things. What is wider than the console is set as records.

No name and no number is ever cut or broken in two: where the columns do not fit side by side, each row
becomes a title with its cells below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_GAP: Final = 3
_NEWLINE: Final = "\n"
_INDENT: Final = 4
# Rows of more lines than this are easier to read as records.
_TALLEST: Final = 4


@dataclass(frozen=True)
class Listing:
    """Rows under named columns; rich prints it to fit. The columns in `right` hold numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    right: frozenset[str] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        widths = _widths(self, options.max_width)
        if widths is None or _tallest(self, widths) > _TALLEST:
            yield from _records(self, options.max_width)
        else:
            yield from _table(self, widths)


def print_table(
    console: Console,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    right: tuple[str, ...] = (),
) -> None:
    """Print rows under named columns, without borders; the columns named in `right` hold numbers. Cells are printed
    as they are: engines' messages hold brackets, which are no markup."""
    console.print(Listing(columns, list(rows), frozenset(right)))


def _widths(table: Listing, room: int) -> list[int] | None:
    """How wide each column may be, wrapping between words only; None when that does not fit."""
    room -= _GAP * (len(table.columns) - 1)
    widths, least = [], []
    for index, name in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        widths.append(max(map(_width, [name, *cells])))
        numbers = cells if name in table.right else []
        words = [word for text in (name, *cells) for word in text.split()]
        least.append(max(map(_width, [*words, *numbers]), default=0))
    while sum(widths) > room:
        index = max(range(len(widths)), key=lambda i: widths[i] if widths[i] > least[i] else -1)
        if widths[index] <= least[index]:
            return None
        widths[index] -= 1
    return widths


def _tallest(table: Listing, widths: list[int]) -> int:
    return max(
        (
            len(_wrapped(cell, width))
            for row in table.rows
            for cell, width in zip(row, widths, strict=True)
        ),
        default=0,
    )


def _table(table: Listing, widths: list[int]) -> Iterator[Text]:
    from rich.text import Text

    for line in _side_by_side(table, table.columns, widths):
        yield Text(line, "bold", no_wrap=True, overflow="ignore")
    yield Text("─" * (sum(widths) + _GAP * (len(widths) - 1)), no_wrap=True, overflow="ignore")
    for row in table.rows:
        for line in _side_by_side(table, row, widths):
            yield Text(line, no_wrap=True, overflow="ignore")


def _side_by_side(table: Listing, cells: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    wrapped = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, wrapped))):
        parts = []
        for name, lines, width in zip(table.columns, wrapped, widths, strict=True):
            text = lines[number] if number < len(lines) else ""
            padding = " " * (width - _width(text))
            parts.append(padding + text if name in table.right else text + padding)
        yield (" " * _GAP).join(parts).rstrip()


def _records(table: Listing, room: int) -> Iterator[Text]:
    """Each row as a title, which is its first named cell, and the other cells below with their names."""
    from rich.text import Text

    first = next(i for i, name in enumerate(table.columns) if name) + 1
    yield Text(table.columns[first - 1], "bold", no_wrap=True, overflow="ignore")
    yield Text("─" * room, no_wrap=True, overflow="ignore")
    for row in table.rows:
        title = " ".join(cell for cell in row[:first] if cell)
        if title:
            yield Text(title, overflow="fold")
        named = zip(table.columns[first:], row[first:], strict=True)
        cells = [
            f"{name} {', '.join(cell.split(_NEWLINE))}".strip() for name, cell in named if cell
        ]
        for line in _flowing(cells, room - _INDENT):
            yield Text(" " * _INDENT + line, overflow="fold")


def _flowing(cells: list[str], room: int) -> Iterator[str]:
    """Cells one after the other, a new line before one that does not fit."""
    line = ""
    for cell in cells:
        if line and _width(line) + _GAP + _width(cell) > room:
            yield line
            line = ""
        line += (" " * _GAP if line else "") + cell
        *full, line = _wrapped(line, room, indent="  ")
        yield from full
    if line:
        yield line


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` cells, broken between words; `indent` is before all but the first."""
    lines = []
    for paragraph in text.split(_NEWLINE):
        if _width(paragraph) <= width:
            lines.append(paragraph)
            continue
        line = ""
        for word in paragraph.split():
            if line.strip() and _width(line) + 1 + _width(word) > width:
                lines.append(line)
                line = indent + word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


def print_facts(console: Console, facts: Iterable[tuple[str, str | None]], indent: int) -> None:
    """A label and a text a line, texts below each other; facts without a text are left out."""
    from rich.text import Text

    for label, text in facts:
        if not text:
            continue
        room = console.width - indent if console.is_terminal else _width(text)
        first, *others = _wrapped(text, room)
        for line in (f"{label:{indent}}{first}", *(" " * indent + other for other in others)):
            console.print(Text(line), soft_wrap=True)


def _width(text: str) -> int:
    """Cells on the screen of the longest line: some characters take two, some none."""
    from rich.cells import cell_len

    return max(map(cell_len, text.split(_NEWLINE)))


def print_line(console: Console, text: str) -> None:
    """A line as it is: no markup in it, and no break but the terminal's own."""
    console.print(text, soft_wrap=True, markup=False)


def size_text(size_bytes: float) -> str:
    """A size in decimal units, as file managers and package indexes print it."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"
