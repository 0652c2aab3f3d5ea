"""What short answers in English say."""

from __future__ import annotations

import re
from collections.abc import Collection

_SENTENCE_END = re.compile(r"\n|\. ")
_WORD = re.compile(r"\w+")


def last_word(completion: str) -> str:
    """The last word of the first line, without a full stop, quotes or marks of emphasis."""
    line = completion.strip().partition("\n")[0]
    return line.rpartition(" ")[2].strip(".\"'*`")


def says(completion: str, word: str, others: Collection[str]) -> bool:
    """Whether the first sentence has a word, and none of the others."""
    said = set(_WORD.findall(_SENTENCE_END.split(completion.strip())[0]))
    return word in said and said.isdisjoint(others)
