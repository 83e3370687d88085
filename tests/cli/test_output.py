"""What is told on stderr while something takes long."""

from __future__ import annotations

import time

import pytest

from edgeserve.cli import output


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.05)
    monkeypatch.delenv("EDGESERVE_QUIET", raising=False)
    with output.progress() as say:
        say("calibrating on 100 samples", 0.25)
        time.sleep(0.2)
        say("timing", None)
        time.sleep(0.2)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert 3 <= len(lines) <= 8
    assert lines[0] == "[0:00] calibrating on 100 samples, 25%"
    assert lines[-1] == "[0:00] timing"
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.02)
    monkeypatch.setenv("EDGESERVE_QUIET", "1")
    with output.progress() as say:
        say("timing", None)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
