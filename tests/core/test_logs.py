"""Lines of the log as JSON."""

from __future__ import annotations

import json
import logging
import sys

from ockham.core.logs import JsonLines, of_request, request_id


def line(message: str, *args: object, **more: object) -> dict[str, object]:
    record = logging.LogRecord("ockham.x", logging.WARNING, "", 0, message, args, None)
    record.__dict__.update(more)
    text = JsonLines().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_line_has_what_a_collector_needs() -> None:
    found = line("%d of\n%s", 3, "\ud800ü", fields={"status": 200, "message": "another"})
    assert found.pop("time", "")
    assert found == {
        "level": "warning",
        "logger": "ockham.x",
        "message": "3 of\n\ud800ü",
        "status": 200,
    }


def test_a_line_bears_the_request_that_it_is_about() -> None:
    token = request_id.set("abc")
    try:
        assert line("x")["request_id"] == "abc"
    finally:
        request_id.reset(token)
    assert line("x", **of_request("abc#12.0"))["request_id"] == "abc"
    assert "request_id" not in line("x")


def test_an_exception_is_a_field() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        found = line("x", exc_info=sys.exc_info(), fields={"odd": object})
    assert "ValueError: wrong" in str(found["exception"])
    assert "object" in str(found["odd"])
