"""Chat templates that only join texts, so that no program of a stranger need be run for them.

A checkpoint's template is found here by the digest of its source, and is then known to give what
`render_plain` gives: the tests run the templates themselves beside it. It is the way to the first
token of the model that a newcomer meets, which should wait for no other process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """A turn is `before`, its role, `between`, its content, `after`. `system` is what the model is
    told where the first message does not say it; `answer` begins the answer."""

    before: str
    between: str
    after: str
    system: str
    answer: str


SMOLLM2 = PlainTemplate(
    before="<|im_start|>",
    between="\n",
    after="<|im_end|>\n",
    system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    answer="<|im_start|>assistant\n",
)

KNOWN = {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": SMOLLM2}
"""SHA-256 of a template's source -> what it does."""


def render_plain(source: str, messages: Any, add_generation_prompt: bool) -> str | None:
    """The prompt that a template makes of messages; None where the template itself is to be asked:
    it is not known, or a message has more than a role and a text."""
    template = KNOWN.get(hashlib.sha256(source.encode("utf-8", "replace")).hexdigest())
    if template is None or not _all_plain(messages):
        return None
    turns = [(message["role"], message["content"]) for message in messages]
    if turns[0][0] != "system":
        turns.insert(0, ("system", template.system))
    text = "".join(
        f"{template.before}{role}{template.between}{content}{template.after}"
        for role, content in turns
    )
    return text + template.answer if add_generation_prompt else text


def _all_plain(messages: Any) -> bool:
    """Whether there are messages, each of them a usual role with a text that can be encoded."""
    return (
        isinstance(messages, Sequence)
        and len(messages) > 0
        and all(
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] in ROLES
            and isinstance(message["content"], str)
            and _is_text(message["content"])
            for message in messages
        )
    )


def _is_text(content: str) -> bool:
    """Whether it holds no half of a surrogate pair."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True
