"""The text that drafters are trained on, as pieces of tokens, and what is held out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.lab.tasks import TASKS
from ockham.text.tokenizer import Tokenizer

LONGEST_PIECE = 4096
HELD_OUT = 20
"""One piece in so many is never trained on."""
OWN_HELD_OUT = "held_out"
"""The name of what is held out of the data itself."""
LEAST_TOKENS = 1000
_LAB_TASKS = ("recall", "documents", "edit", "steps", "chat")
_LAB_CONTEXTS = ("recall", "documents", "recall", "edit")
LAB_ITEMS = 3000
_LONGEST_LAB_PROMPT = 512


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a text. Where `prompt` is not 0 it is a question of so many tokens with its answer;
    else the model may be asked to go on from anywhere."""

    tokens: tuple[int, ...]
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is trained on, and what only measures, by the name of its file."""

    train: list[Piece]
    held_out: dict[str, list[Piece]]


def read_documents(
    data: Sequence[Path], held_out: Sequence[Path], tokenizer: Tokenizer, end: int | None
) -> Pieces:
    """The texts of .txt files (each is one) and .jsonl files (each line an object with `text`, or
    with `messages` as in the chat API). `end` is added after each text.

    Without `held_out` every 20th piece is held out. Raises ConfigError for a file that cannot be
    read, or for too little text.
    """
    train = _pieces(data, tokenizer, end)
    if held_out:
        return Pieces(train, {path.stem: _pieces([path], tokenizer, end) for path in held_out})
    return split(train)


def lab_documents(tokenizer: Tokenizer, seed: int, items: int = LAB_ITEMS) -> Pieces:
    """Questions of the lab tasks with their answers, of the train split, for the lab models."""
    rng = Random(f"documents {seed}")
    pieces = []
    for number in range(items):
        task = TASKS[_LAB_TASKS[number % len(_LAB_TASKS)]]
        item = task.item(rng.randrange(1 << 30), number, "train")
        answer = {"role": "assistant", "content": item.answer}
        piece = _chat_piece([*item.messages, answer], tokenizer)
        if piece.prompt <= _LONGEST_LAB_PROMPT:
            pieces.append(piece)
    return split(pieces)


def lab_pieces(tokenizer: Tokenizer, seed: int, items: int) -> list[Piece]:
    """Questions over long contexts of the lab tasks with their answers, of the train split."""
    rng = Random(f"contexts {seed}")
    pieces = []
    for number in range(items):
        name = _LAB_CONTEXTS[number % len(_LAB_CONTEXTS)]
        item = TASKS[name].item(rng.randrange(1 << 30), number, "train")
        answer = {"role": "assistant", "content": item.answer}
        pieces.append(_chat_piece([*item.messages, answer], tokenizer))
    return pieces


def read_pieces(data: Sequence[Path], tokenizer: Tokenizer, length: int) -> list[Piece]:
    """The texts of files, as `read_documents` has them, in parts of at most so many tokens."""
    return [part for piece in _pieces(data, tokenizer, None) for part in _cut(piece, length)]


def split(pieces: list[Piece]) -> Pieces:
    """Every 20th piece is held out; where there are fewer, long ones are cut first."""
    total = sum(len(piece.tokens) for piece in pieces)
    if len(pieces) < 2 * HELD_OUT:
        length = max(16, min(LONGEST_PIECE, total // (2 * HELD_OUT)))
        pieces = [part for piece in pieces for part in _cut(piece, length)]
    held_out = pieces[HELD_OUT - 1 :: HELD_OUT]
    train = [piece for i, piece in enumerate(pieces) if i % HELD_OUT != HELD_OUT - 1]
    return Pieces(train, {OWN_HELD_OUT: held_out})


def _pieces(paths: Sequence[Path], tokenizer: Tokenizer, end: int | None) -> list[Piece]:
    pieces = [
        part
        for path in paths
        for document in _documents(path, tokenizer, end)
        for part in _cut(document, LONGEST_PIECE)
    ]
    total = sum(len(piece.tokens) for piece in pieces)
    if total < LEAST_TOKENS:
        raise ConfigError(
            f"training needs at least {LEAST_TOKENS} tokens, and profits from a million; found in "
            f"{', '.join(map(str, paths))}: {total}."
        )
    return pieces


def _cut(piece: Piece, length: int) -> Iterator[Piece]:
    """A text in parts; a question stays whole."""
    if piece.prompt:
        yield piece
        return
    for start in range(0, len(piece.tokens), length):
        yield Piece(piece.tokens[start : start + length])


def texts_of(path: Path) -> Iterator[str]:
    """The text of a file; of each line of a .jsonl file its "text", or what its "messages" say.
    Raises ConfigError for what cannot be read."""
    text = _read(path)
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            said, messages = _entry(line, f"line {number} of {path}")
            yield from [said] if said is not None else (str(m.get("content")) for m in messages)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the data {path} cannot be read: {error}.") from None


def _documents(path: Path, tokenizer: Tokenizer, end: int | None) -> Iterator[Piece]:
    text = _read(path)
    if path.suffix != ".jsonl":
        yield _text_piece(text, tokenizer, end)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _line_piece(line, f"line {number} of {path}", tokenizer, end)


def _entry(line: str, where: str) -> tuple[str | None, list[dict[str, Any]]]:
    """The "text" of a line, or None and its "messages"."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}.") from None
    text = entry.get("text") if isinstance(entry, dict) else None
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if isinstance(text, str):
        return text, []
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f'{where} has neither a "text" nor "messages".')
    if not all(isinstance(message, dict) for message in messages):
        raise ConfigError(f"{where} has messages that are no objects.")
    return None, messages


def _line_piece(line: str, where: str, tokenizer: Tokenizer, end: int | None) -> Piece:
    text, messages = _entry(line, where)
    if text is not None:
        return _text_piece(text, tokenizer, end)
    try:
        return _chat_piece(messages, tokenizer)
    except InvalidRequest as error:
        raise ConfigError(f"{where}: {error}") from None


def _text_piece(text: str, tokenizer: Tokenizer, end: int | None) -> Piece:
    ids = tokenizer.encode(text)
    return Piece((*ids, end) if end is not None else tuple(ids))


def _chat_piece(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Piece:
    """A chat as its template has it; the prompt is all before the last answer."""
    answered = messages[-1].get("role") == "assistant"
    asked = messages[:-1] if answered else messages
    text = tokenizer.apply_chat_template(asked)
    prompt = len(tokenizer.encode(text, add_special_tokens=False))
    if answered:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    return Piece(tuple(tokenizer.encode(text, add_special_tokens=False)), prompt)
