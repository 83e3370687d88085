"""The server's log: text or JSON, and optionally one line a request."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Final, Literal

# One line a request; off unless `--access-log`.
ACCESS: Final = logging.getLogger("edgeserve.access")
_FIELDS: Final = "edgeserve_fields"
_MOST: Final = 200  # characters of what a client named
# Values that are shown as they are; all others as JSON strings, which end where they seem to.
_PLAIN: Final = re.compile(r"[\w./:@%+,~*-]+", re.ASCII)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, _FIELDS, None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(log_format: Literal["text", "json"], *, access: bool) -> None:
    """Format what goes to the root logger's handlers; switch the access log."""
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)


def log_request(
    request_id: str | None, model: str, version: str, result: str, **fields: object
) -> None:
    """One request was answered. One without an id gets one, so that its line can be told apart.

    A client's id is cut, and cannot break the line or pass for another field.
    """
    identity = (request_id or uuid.uuid4().hex)[:_MOST]
    _log({"id": identity, "model": model, "version": version, "result": result, **fields})


def log_refused(
    protocol: str, method: str, path: str, status: int | str, reason: str, peer: str
) -> None:
    """Log one refused request. What the client sent is cut."""
    _log({
        "protocol": protocol, "method": method[:_MOST], "path": path[:_MOST], "status": status,
        "result": reason, "peer": peer,
    })  # fmt: skip


def _log(shown: dict[str, object]) -> None:
    text = " ".join(f"{name}={_shown(value)}" for name, value in shown.items())
    ACCESS.info("%s", text, extra={_FIELDS: shown})


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
