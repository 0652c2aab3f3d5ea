"""Why a request was refused, as the log may say it: on one line, without what the caller wrote."""

from __future__ import annotations

import re
from typing import Any

from starlette.types import Scope

from ockham.core.errors import InvalidRequest, OckhamError

REFUSED = "ockham.refused"
"""Where a request's scope holds what it was refused with, as the log may say it."""
MOST_CHARACTERS = 200

_FOREIGN = ("messages", "structured_outputs", "response_format", "chat_template")
"""Fields about which a library or a template says in its own words what is wrong, after a colon or
in brackets: it may quote the text."""
_FOREIGN_WORDS = re.compile(r"(: | \().*", re.DOTALL)
_QUOTED = re.compile(
    r"""(?<![A-Za-z0-9])(['"])(?:\\.|(?!\1).)*?(?:\1(?:\.\.\.|(?![A-Za-z0-9]))|\.\.\.|$)""",
    re.DOTALL,
)


def note_refusal(scope: Scope, error: OckhamError) -> None:
    """Remember what a request was answered with, for its line in the log.

    The error itself is not kept: its traceback holds the frames of the request, and so its body,
    and the scope in which it would stand, until the garbage collector found the circle."""
    scope[REFUSED] = reason_for_log(error)


def reason_for_log(error: Any) -> str:
    """The error as one line of at most `MOST_CHARACTERS`. Values that the caller sent are left out,
    as they may be of a prompt; the name of a model that is not here stays."""
    text, param = str(error), getattr(error, "param", None) or ""
    if param != "model":
        if isinstance(error, InvalidRequest) and param.startswith(_FOREIGN):
            text = _FOREIGN_WORDS.sub("", text)
        text = _QUOTED.sub("'...'", text)
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
