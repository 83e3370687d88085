"""Nothing of ours, and nothing that we import, reports to anybody.

`import openvino` sends an event to Google Analytics, without having asked, from a process that it forks while
other threads run: one that sometimes never ends, and whoever forked it waits for it when it exits.
"""

from __future__ import annotations

import sys


def refuse() -> None:
    """Call before OpenVINO or NNCF is imported: both go on without a sender that cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None: not to be imported
