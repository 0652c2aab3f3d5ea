"""What Claude Code changes in every prompt although it tells the model nothing.

A prefix is computed once as long as it stays the same to the token. Two things of Claude Code's
change with each request: a line at the start of the system prompt by which requests are accounted
for, and a countdown of the tokens that its user may still spend. Both are left out here.
"""

from __future__ import annotations

import re

_HEADER = re.compile(
    r"\Ax-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]*(?:;|(?=\n|\Z)))*[ \t]*\n?"
)
_COUNTDOWN = re.compile(r"<total_tokens>\s*[\d,]+ tokens left\s*</total_tokens>")
_USAGE = r"Token usage: [\d,]+/[\d,]+; [\d,]+ remaining"
_REMINDER = re.compile(
    rf"\s*(?:<system-reminder>\s*)?(?:{_COUNTDOWN.pattern}|{_USAGE}|"
    rf"<system_warning>\s*{_USAGE}\s*</system_warning>)(?:\s*</system-reminder>)?\s*"
)
_LONGEST_REMINDER = 300


def without_header(text: str) -> str:
    """The first text of a system prompt without the line `x-anthropic-billing-header: ...`."""
    return _HEADER.sub("", text, count=1)


def without_countdown(text: str) -> str:
    """A text of the role `system` without how many tokens are left."""
    return "" if is_countdown(text) else _COUNTDOWN.sub("", text)


def is_countdown(text: str) -> bool:
    """Whether a text says how many tokens are left, and nothing else."""
    return len(text) <= _LONGEST_REMINDER and _REMINDER.fullmatch(text) is not None
