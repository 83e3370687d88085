from __future__ import annotations

import logging

import pytest

from edgeserve.serve.process import logs


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        ("mine", "id=mine model"),
        ("x\nWARNING root: forged", r'id="x\nWARNING root: forged" model'),
        ("\x1b[2J", r'id="\u001b[2J" model'),
        ("n" * 1000, f"id={'n' * 200} model"),
    ],
)
def test_a_clients_id_cannot_break_the_log(
    identity: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=logs.ACCESS.name):
        logs.log_request(identity, "m", "1", "ok")
    assert caplog.messages[0].startswith(shown)
    assert len(caplog.messages[0].splitlines()) == 1
