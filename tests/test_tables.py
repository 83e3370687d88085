"""Tables fit any console without cutting a name or breaking a number."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgeserve.tables import Listing, print_facts


def shown(table: Listing, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def variants() -> Listing:
    rows = [
        ("✓", "openvino-int8", "openvino/cpu", "5.3 MB", "chosen"),
        ("✗", "onnx-fp32", "onnxruntime/cpu", "18.7 MB", "onnx-int8 is 1.53x faster"),
    ]
    columns = ("", "variant", "runs on", "size", "reason")
    return Listing(columns, rows, right=frozenset({"size"}))


def test_columns_side_by_side_where_they_fit(variants: Listing) -> None:
    assert shown(variants, 140) == [
        "    variant         runs on              size   reason",
        "─────────────────────────────────────────────────────────────────────────",
        "✓   openvino-int8   openvino/cpu       5.3 MB   chosen",
        "✗   onnx-fp32       onnxruntime/cpu   18.7 MB   onnx-int8 is 1.53x faster",
    ]


def test_long_cells_wrap_between_words(variants: Listing) -> None:
    assert shown(variants, 66) == [
        "    variant         runs on              size   reason",
        "──────────────────────────────────────────────────────────────────",
        "✓   openvino-int8   openvino/cpu       5.3 MB   chosen",
        "✗   onnx-fp32       onnxruntime/cpu   18.7 MB   onnx-int8 is 1.53x",
        "                                                faster",
    ]


def test_records_where_nothing_else_fits(variants: Listing) -> None:
    assert shown(variants, 50) == [
        "variant",
        "──────────────────────────────────────────────────",
        "✓ openvino-int8",
        "    runs on openvino/cpu   size 5.3 MB",
        "    reason chosen",
        "✗ onnx-fp32",
        "    runs on onnxruntime/cpu   size 18.7 MB",
        "    reason onnx-int8 is 1.53x faster",
    ]


def test_a_paragraph_in_a_narrow_column_makes_records_too() -> None:
    table = Listing(("target", "why"), [("a" * 30, "word " * 12)])
    assert shown(table, 44)[2:] == [
        "a" * 30,
        "    why word word word word word word word",
        "      word word word word word",
    ]


def test_what_is_wider_than_the_console_is_folded_not_cut() -> None:
    table = Listing(("file", "size"), [("x" * 50, "y" * 50)])
    assert "".join(shown(table, 30)).count("x") == 50
    assert "".join(shown(table, 30)).count("y") == 50


def test_an_empty_table_is_its_head() -> None:
    assert shown(Listing(("file", "valid"), []), 80) == ["file   valid", "────────────"]


words = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
cells = st.lists(words, max_size=6).map(" ".join)


@given(st.lists(st.tuples(words, cells, cells, cells), max_size=5), st.integers(40, 140))
def test_no_word_is_lost_or_broken(rows: list[tuple[str, str, str, str]], width: int) -> None:
    table = Listing(("name", "one", "two", "three"), [*rows], right=frozenset({"two"}))
    lines = shown(table, width)
    assert max(map(cell_len, lines)) <= width
    printed = " ".join(lines).split()
    for row in rows:
        for word in " ".join(row).split():
            assert word in printed


def test_facts_hang_on_a_terminal_and_stay_whole_in_a_pipe() -> None:
    facts = [("target", "cpu-x86"), ("memory", None), ("notes", "int8 pays most with VNNI")]
    for terminal, notes in ((True, ["notes    int8 pays", "         most with", "         VNNI"]),
                            (False, ["notes    int8 pays most with VNNI"])):  # fmt: skip
        console = Console(file=io.StringIO(), width=20, force_terminal=terminal, no_color=True)
        print_facts(console, facts, indent=9)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert lines == ["target   cpu-x86", *notes]
