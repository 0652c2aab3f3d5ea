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

from ockham.core.asks import Ask, ChunksAsk
from ockham.core.errors import InvalidRequest
from ockham.core.registry import ask_of, asks_at, make_ask
from ockham.text.tokenizer import Tokenizer

MAX_CHUNKS = 4096
"""Of one prompt. Each is tokenized by itself."""

Piece = tuple[str, bool]
"""Text, and whether it is a chunk."""


class ReuseParams:
    """What a request allows to be reused approximately.

    `reuse` is the technique: "chunk" or "edit", as far as the engine was started with it. Further
    keywords are the fields of its `Ask`; None leaves one out. For `chunk`: the text parts of a
    message's content are chunks, but for the last of all; content or prompts of one piece are cut
    behind each `chunk_separator`, and what stands behind the last is no chunk.
    `recompute_fraction` of their tokens is computed again (None: the engine's setting). Raises
    InvalidRequest.
    """

    def __init__(self, *, reuse: str, **settings: Any) -> None:
        self.reuse = reuse
        self.key = f"reuse/{reuse}"
        given = {name: value for name, value in settings.items() if value is not None}
        kind = ask_of("reuse", reuse)
        own = given if kind is None else kind.settings()
        self.ask = make_ask(
            self.key, {n: v for n, v in given.items() if n in own or not _is_neutral(n, v)}
        )
        for name in given.keys() & set(self.ask.found):
            raise InvalidRequest(f"{name} are found in the prompt; leave {name} out.", name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReuseParams) and (self.key, self.ask) == (other.key, other.ask)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"ReuseParams(reuse={self.reuse!r}, ask={self.ask!r})"

    def changed(self, **settings: Any) -> ReuseParams:
        """The same with other settings."""
        given = {name: getattr(self.ask, name) for name in self.ask.settings()}
        return ReuseParams(reuse=self.reuse, **{**given, **settings})

    @property
    def asks(self) -> dict[str, Ask]:
        """What the engine is asked for, of a prompt in which no chunks are marked."""
        return {self.key: self.ask}

    @property
    def marks_chunks(self) -> bool:
        return isinstance(self.ask, ChunksAsk)

    def cut_text(self, text: str) -> list[Piece]:
        """A prompt in pieces: chunks, each with the separator behind it, and the rest. Raises
        InvalidRequest for too many."""
        separator = self._chunks.chunk_separator
        _check_chunks(text.count(separator))
        parts = text.split(separator)
        return [(part + separator, True) for part in parts[:-1]] + [(parts[-1], False)]

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
    ) -> tuple[list[int], dict[str, Ask]]:
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
        if not chunks:
            return tokens, self.asks
        return tokens, {self.key: msgspec.structs.replace(self._chunks, chunks=chunks)}

    @property
    def _chunks(self) -> ChunksAsk:
        assert isinstance(self.ask, ChunksAsk), "only a technique that marks chunks cuts prompts"
        return self.ask


def _is_neutral(name: str, value: Any) -> bool:
    """Whether a setting asks for nothing, of a technique that does not have it: it is 0, or what
    the techniques that have it take it to be."""
    defaults = [
        field.default
        for kind in asks_at("reuse").values()
        for field in msgspec.structs.fields(kind)
        if field.name == name
    ]
    return value == 0 or value in defaults


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
