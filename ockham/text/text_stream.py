"""Tokens to text one after another, whole characters only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ockham.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for each byte that is no part of a character."""


class TextStream:
    """Decodes one token after another. What `push` and `finish` return adds up to exactly
    `Tokenizer.decode` of all the ids, and never ends within a character before `finish`.

    Only a window is decoded: the tokens that are not yet out, after those of the last emission.
    These give the decoder the context that its rules need, such as no space before the first word.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._context = 0  # tokens at the window's start that are out completely
        self._emitted = 0  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; may be empty."""
        if self._tokenizer.is_silent(token_id, self._skip):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window, self._skip)
        certain = _certain_characters(text)
        if certain <= self._emitted:
            return ""
        new = text[self._emitted : certain]
        self._emitted = certain
        if certain == len(text):
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._emitted = len(self._tokenizer.decode(self._window, self._skip))
        return new

    def fork(self) -> TextStream:
        """Another decoder that stands where this one does."""
        twin = TextStream(self._tokenizer, self._skip)
        twin._window, twin._context, twin._emitted = [*self._window], self._context, self._emitted
        return twin

    def finish(self) -> str:
        """The rest: what was held back as an incomplete character. Nothing may be pushed after."""
        text = self._tokenizer.decode(self._window, self._skip)
        rest = text[self._emitted :]
        self._emitted = len(text)
        return rest


def places(
    tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool
) -> Iterator[int]:
    """Where each token begins in the text of all of them, in characters. One that begins within a
    character, or between bytes that are no characters, begins where these do."""
    stream, at = TextStream(tokenizer, skip_special_tokens), 0
    for token_id in token_ids:
        yield at
        at += len(stream.push(token_id))


def _certain_characters(text: str) -> int:
    """Characters of `text` that no later token can change: at most three bytes of an unfinished
    character can stand at its end, each shown as at most one U+FFFD."""
    certain = len(text)
    while certain and certain > len(text) - 3 and text[certain - 1] == REPLACEMENT:
        certain -= 1
    return certain
