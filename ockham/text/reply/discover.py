"""The format of calls, found in what a chat template makes of one.

For templates that `formats` does not know: a call of a marked name with one marked argument was
rendered; what stands around the marks is the format.
"""

from __future__ import annotations

import json
import re

from ockham.text.reply.formats import Call, Format, HeadCall, JsonCall, PythonCall, TagCall

MOST_MARK = 64
"""Characters of an opening or closing mark."""


def find_format(text: str, name: str, key: str, value: str) -> Format | None:
    """The format of a rendered answer that calls `name` with {key: value}, whose value is written
    as it is; None if it is of no known form."""
    found = _json(text, name, key) or _python(text, name, key) or _head(text, name, key)
    found = found or _tags(text, name, key, value)
    if found is None:
        return None
    call, start, end = found
    begin = text[:start].strip()
    close = text[end:].strip()
    if isinstance(call, TagCall) and not begin:
        begin = call.name[0]
    if not begin or len(begin) > MOST_MARK or len(close) > MOST_MARK:
        return None
    written = ("", "", "") if begin == getattr(call, "name", ("",))[0] else (begin, "\n", close)
    return Format(
        name="found", open=(begin,), close=close, calls=(call,), written=written, wrapped=True
    )


def _json(text: str, name: str, key: str) -> tuple[Call, int, int] | None:
    at = text.find(json.dumps(name))
    start = text.rfind("{", 0, max(at, 0))
    if at < 0 or start < 0:
        return None
    while start >= 0:
        try:
            found, length = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            return None
        if not isinstance(found, dict):
            return None
        names = [each for each, value in found.items() if value == name]
        arguments = [
            each for each, value in found.items() if isinstance(value, dict) and key in value
        ]
        if names and arguments:
            break
        start = text.rfind("{", 0, start)
    else:
        return None
    call = JsonCall((names[0],), (arguments[0],))
    end = start + length
    before, after = text[:start].rstrip(), text[end:].lstrip()
    if before.endswith("[") and after.startswith("]"):  # a list of calls
        start, end = len(before) - 1, text.index("]", end) + 1
    return call, start, end


def _python(text: str, name: str, key: str) -> tuple[Call, int, int] | None:
    match = re.search(rf"\[?\s*{re.escape(name)}\(\s*{re.escape(key)}\s*=[^)]*\)\s*\]?", text)
    return None if match is None else (PythonCall(), match.start(), match.end())


def _head(text: str, name: str, key: str) -> tuple[Call, int, int] | None:
    match = re.search(rf"{re.escape(name)}([^{{\"'<>]*|[^{{]*?[>\]]\s*)\{{", text)
    if match is None:
        return None
    try:
        found, length = json.JSONDecoder().raw_decode(text[match.end() - 1 :])
    except ValueError:
        return None
    if not isinstance(found, dict) or key not in found:
        return None
    separator = match[1].strip()
    call = HeadCall(after=(separator,) if separator else ())
    return call, match.start(), match.end() - 1 + length


def _tags(text: str, name: str, key: str, value: str) -> tuple[Call, int, int] | None:
    tag = r"(<[^<>]*?)"
    match = re.search(
        rf"{tag}{re.escape(name)}([^<>]*>)\s*{tag}{re.escape(key)}([^<>]*>)(\s*<[^<>/]*>)?\s*"
        rf"{re.escape(value)}(\s*)(</[^<>]*>)\s*(</[^<>]*>)",
        text,
    )
    if match is None:
        return None
    call = TagCall(
        name=(match[1], match[2]),
        key=(match[3], match[4]),
        value=((match[5] or "").strip(), match[7]),
        end=match[8],
        lines=match[6] == "\n",
    )
    return call, match.start(), match.end()
