"""What the log looks like: lines for people, or one JSON object a line for programs.

The process of a server calls `set_up` once. The engine's process calls `set_up_like_parent`, which
does the same for the engine's own lines.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

FORMATS = ("text", "json")
FORMAT_VARIABLE = "OCKHAM_LOG_FORMAT"
LEVEL_VARIABLE = "OCKHAM_LOG_LEVEL"

request_id: ContextVar[str | None] = ContextVar("ockham_request_id", default=None)
"""The request on whose behalf the running code works; its lines bear it."""


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line: `time` (UTC, ISO 8601), `level`, `logger`,
    `message`, `request_id` where there is one, what the call gave as `extra={"fields": {...}}`, and
    `exception`, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (name := request_id.get()) is not None:
            line["request_id"] = name
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line |= {key: value for key, value in fields.items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(form: str, levels: Mapping[str, int]) -> None:
    """Write to stderr, in this form, what each of these loggers has to say at its level or above.

    As JSON, what other libraries warn of is written too, so that every line is an object."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines())
        levels = {"": logging.WARNING, **levels}
        logging.captureWarnings(True)
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S")
        )
    for name, level in levels.items():
        logger = logging.getLogger(name or None)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False


def leave_word(form: str, level: str) -> None:
    """Let processes that this one starts from now on write their logs as this one does."""
    os.environ[FORMAT_VARIABLE], os.environ[LEVEL_VARIABLE] = form, level
    if form == "json":
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would be text between the objects


def set_up_like_parent() -> None:
    """Write lines as the process that started this one does, if it left word how."""
    form = os.environ.get(FORMAT_VARIABLE)
    if form in FORMATS:
        levels = logging.getLevelNamesMapping()
        level = levels.get(os.environ.get(LEVEL_VARIABLE, "").upper(), logging.INFO)
        set_up(form, {"ockham": level})


def of_request(name: str) -> dict[str, Any]:
    """`extra` of a line about an engine's request. A server calls the parts of a caller's request
    by the request's id, a number sign and a number."""
    return {"fields": {"request_id": name.rpartition("#")[0] or name}}


def structured() -> bool:
    """Whether this process writes its log as JSON."""
    handlers = logging.getLogger("ockham").handlers
    return any(isinstance(handler.formatter, JsonLines) for handler in handlers)


def say(line: str) -> None:
    """Tell whoever started the program, on stderr, whether or not it keeps a log."""
    if structured():
        logging.getLogger("ockham").info("%s", line)
    else:
        print(line, file=sys.stderr)
