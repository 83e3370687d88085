"""Exporters: a format is one module, found by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeserve.errors import UsageError
from edgeserve.exporting import as_text, exporter, formats


@pytest.mark.parametrize("package", ["edgeserve.bench.exports", "edgeserve.gate.exports"])
def test_reports_have_a_table_for_people_and_json_for_programs(package: str) -> None:
    assert formats(package) == ("json", "table")
    assert all(callable(exporter(package, name)) for name in formats(package))


def test_a_new_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kinds_of_reports"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "csv.py").write_text(
        "def export(report, console):\n    console.file.write(','.join(report) + '\\n')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert formats("kinds_of_reports") == ("csv",)
    assert as_text(exporter("kinds_of_reports", "csv"), ["p50", "p99"]) == "p50,p99"


def test_an_unknown_format_is_refused_with_the_nearest_and_with_all() -> None:
    with pytest.raises(UsageError, match="--format jsn is not supported") as raised:
        exporter("edgeserve.gate.exports", "jsn")
    assert raised.value.hint == "did you mean json?"
    with pytest.raises(UsageError) as raised:
        exporter("edgeserve.gate.exports", "spreadsheet")
    assert raised.value.hint == "formats are json, table"


def test_json_comes_out_as_it_is_however_long_its_lines_are() -> None:
    note = {"note": "[bold]:smile: " + "x" * 500}
    assert json.loads(as_text(exporter("edgeserve.bench.exports", "json"), note)) == note
