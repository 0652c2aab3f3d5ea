"""Lines of the log as JSON."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from ockham.core.logs import JsonLines, leave_word, of_request, request_id, set_up_like_parent


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


@pytest.mark.parametrize("form", ["text", "json", None])
def test_the_engine_writes_lines_as_its_server_does(
    form: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OCKHAM_LOG_FORMAT", "OCKHAM_LOG_LEVEL", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")  # and put back afterwards
    loggers = [logging.getLogger(name) for name in (None, "ockham")]
    before = [(each, each.level, [*each.handlers], each.propagate) for each in loggers]
    if form is not None:
        leave_word(form, "info")
    try:
        set_up_like_parent()
        logging.getLogger("ockham.engine").info("Guard: it is tried.")
        said = capsys.readouterr().err
    finally:
        logging.captureWarnings(False)
        for each, level, handlers, propagates in before:
            each.setLevel(level)
            each.handlers[:], each.propagate = handlers, propagates
    if form == "json":
        assert json.loads(said)["level"] == "info"
    elif form == "text":
        assert said.endswith(" I Guard: it is tried.\n")
    else:
        assert said == ""
