"""The requests of workloads whose prompts share text, as token ids.

The random checkpoint has no tokenizer that means anything, so each word and each mark is a token.
What requests share is the same as in text.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, cast

from benchmarks.peers.workloads import (
    FIRST_ORDINARY_TOKEN,
    VOCABULARY,
    Returning,
    Warm,
    random_prompt,
)
from ockham.lab.workloads import make_workload
from ockham.lab.workloads.prompts import token_prompts

if TYPE_CHECKING:
    from ockham.text.tokenizer import Tokenizer

Asked = tuple[list[int], int]
"""A prompt and how many tokens to generate."""


class Words:
    """A token for each word and mark, numbered as they come; the part of Ockham's Tokenizer that
    workloads use. Raises ValueError where the vocabulary ends."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self._id(word) for word in re.findall(r"\w+|[^\w ]", text)]

    def apply_chat_template(self, chat: list[dict[str, Any]]) -> str:
        said = (f"<{message['role']}> {message['content']}\n" for message in chat)
        return "".join(said) + "<assistant> "

    def _id(self, word: str) -> int:
        token = self._ids.setdefault(word, FIRST_ORDINARY_TOKEN + len(self._ids))
        if token >= VOCABULARY:
            raise ValueError(f"a workload has more than {VOCABULARY} different words.")
        return token


def requests(workload: Returning, seed: int) -> list[Asked]:
    """A workload's requests in its order; a chat goes on with its recorded answers, so that every
    engine is asked the same."""
    made = make_workload(workload.kind, dict(workload.settings)).requests(seed)
    tokenizer = cast("Tokenizer", Words())
    return [(prompt, asked.max_tokens) for asked, prompt in token_prompts(made, tokenizer)]


def warm_requests(workload: Warm, seed: int) -> list[Asked]:
    """The system prompt with a first question, then in turn one alone and another one after it. All
    questions are different, from their first token on."""
    numbers = random.Random(f"warm {seed}")
    system = random_prompt(numbers, workload.system_tokens)
    asked: list[Asked] = []
    for start in range(FIRST_ORDINARY_TOKEN, FIRST_ORDINARY_TOKEN + 2 * workload.pairs + 1):
        question = [start, *random_prompt(numbers, workload.new_prompt_tokens - 1)]
        asked.append((question if len(asked) % 2 else system + question, 1))
    return asked
