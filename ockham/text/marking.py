"""How a caller asks for approximate reuse, and how chunks are marked and cut into tokens.

A chunk's token ids must not depend on what stands beside it, or it would not be found again. So a
prompt in which chunks are marked is cut at their ends before it is tokenized, and each piece is
tokenized by itself; what the tokenizer puts before a text stands before the first piece only. The
ids may differ from those of the whole text next to a cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ockham.core.approximation import Approximation
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.text.tokenizer import Tokenizer

NATURAL_BOUNDARY = "\n\n"
"""Where a text without other marks is cut."""

MAX_CHUNKS = 4096
"""Of one prompt. Each is tokenized by itself."""

Piece = tuple[str, bool]
"""Text, and whether it is a chunk."""


class ReuseParams(msgspec.Struct, kw_only=True, frozen=True):
    """What a request allows to be reused approximately.

    `reuse` is the technique: "chunk" or "edit", as far as the engine was started with it. For
    `chunk`: the text parts of a message's content are chunks, but for the last of all; content or
    prompts of one piece are cut behind each `chunk_separator`, and what stands behind the last is
    no chunk. `recompute_fraction` of their tokens is computed again (None: the engine's setting).
    """

    reuse: str
    recompute_fraction: float | None = None
    chunk_separator: str = NATURAL_BOUNDARY

    def __post_init__(self) -> None:
        if not self.chunk_separator:
            raise InvalidRequest("chunk_separator must not be empty.", "chunk_separator")
        if self.chunk_separator != NATURAL_BOUNDARY and not self.marks_chunks:
            raise InvalidRequest(
                f"reuse={shown(self.reuse)} takes no chunk_separator; leave it out.",
                "chunk_separator",
            )

    @property
    def marks_chunks(self) -> bool:
        return self.reuse == "chunk"

    def cut_text(self, text: str) -> list[Piece]:
        """A prompt in pieces: chunks, each with the separator behind it, and the rest. Raises
        InvalidRequest for too many."""
        _check_chunks(text.count(self.chunk_separator))
        parts = text.split(self.chunk_separator)
        return [(part + self.chunk_separator, True) for part in parts[:-1]] + [(parts[-1], False)]

    def cut_chat(self, text: str, messages: Iterable[Mapping[str, Any]]) -> list[Piece]:
        """A rendered chat in pieces: its chunks, and what stands between them. A part that the
        template did not take over as it is, is no chunk."""
        contents = [_texts(message.get("content")) for message in messages]
        last = len(contents) - 1
        chunks: list[str] = []
        for number, parts in enumerate(contents):
            if len(parts) > 1:
                chunks += parts[: len(parts) - (number == last)]
            elif parts:
                chunks += [piece for piece, marked in self.cut_text(parts[0]) if marked]
            _check_chunks(len(chunks))
        pieces: list[Piece] = []
        done = 0
        for chunk in chunks:
            at = text.find(chunk, done) if chunk else -1
            if at >= 0:
                pieces += [(text[done:at], False), (chunk, True)]
                done = at + len(chunk)
        return [piece for piece in (*pieces, (text[done:], False)) if piece[0]]

    def encode(
        self, tokenizer: Tokenizer, pieces: Sequence[Piece], add_special_tokens: bool
    ) -> tuple[list[int], Approximation]:
        """The token ids of the pieces, and what the engine is asked for."""
        tokens: list[int] = []
        chunks: list[tuple[int, int]] = []
        for number, (piece, marked) in enumerate(pieces):
            start = len(tokens)
            if number == 0 and add_special_tokens:
                tokens += tokenizer.encode("")
                start = len(tokens)
            tokens += tokenizer.encode(piece, add_special_tokens=False)
            if marked and len(tokens) > start:
                chunks.append((start, len(tokens)))
        return tokens, self.approximation(chunks)

    def approximation(self, chunks: list[tuple[int, int]] | None = None) -> Approximation:
        """What the engine is asked for, of a prompt with these chunks."""
        return Approximation(
            reuse=self.reuse, chunks=chunks or [], recompute_fraction=self.recompute_fraction
        )


def _check_chunks(count: int) -> None:
    if count > MAX_CHUNKS:
        raise InvalidRequest(
            f"the prompt has {count} chunks, at most {MAX_CHUNKS}; mark fewer of them, or choose "
            "another chunk_separator.",
            "chunk_separator",
        )


def _texts(content: Any) -> list[str]:
    """The text parts of a message's content."""
    if isinstance(content, str):
        return [content]
    parts = [part if isinstance(part, str) else part.get("text") for part in content or ()]
    return [part for part in parts if isinstance(part, str)]
