"""Chunks keep their tokens whatever stands beside them, and the text loses nothing."""

from __future__ import annotations

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.model.hub import resolve
from ockham.text.marking import Piece, ReuseParams
from ockham.text.tokenizer import Tokenizer, load_tokenizer

CHUNK = ReuseParams(reuse="chunk")
ONE, TWO = "The first document.\n\n", "A second one, with 12 words\nin two lines.\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = load_tokenizer(EngineConfig(), resolve("lab"))
    assert found is not None
    return found


def text_of(pieces: list[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def marked(pieces: list[Piece]) -> list[str]:
    return [text for text, chunk in pieces if chunk]


def test_text_is_cut_behind_its_separators() -> None:
    pieces = CHUNK.cut_text(f"{ONE}{TWO}Which?")
    assert pieces == [(ONE, True), (TWO, True), ("Which?", False)]
    lines = ReuseParams(reuse="chunk", chunk_separator="\n").cut_text("a\nb")
    assert lines == [("a\n", True), ("b", False)]
    assert CHUNK.cut_text("Which?") == [("Which?", False)]


def test_parts_of_a_message_are_chunks_but_for_the_last() -> None:
    parts = [{"type": "text", "text": text} for text in ("system text", "one", "two", "Which?")]
    messages = [
        {"role": "system", "content": parts[:1]},
        {"role": "user", "content": parts[1:]},
    ]
    text = "<s>system text</s><u>one\ntwo\nWhich?</u>"
    pieces = CHUNK.cut_chat(text, messages)
    assert text_of(pieces) == text
    assert marked(pieces) == ["one", "two"]
    several = [{"role": "user", "content": parts[1:]}, {"role": "user", "content": "And now?"}]
    text = "<u>one\ntwo\nWhich?</u><u>And now?</u>"
    assert marked(CHUNK.cut_chat(text, several)) == ["one", "two", "Which?"]


def test_plain_content_is_cut_at_natural_boundaries() -> None:
    messages = [{"role": "user", "content": f"{ONE}{TWO}Which?"}]
    text = f"<u>{ONE}{TWO}Which?</u>"
    pieces = CHUNK.cut_chat(text, messages)
    assert text_of(pieces) == text
    assert marked(pieces) == [ONE, TWO]


def test_a_part_that_the_template_changed_is_no_chunk() -> None:
    messages = [{"role": "user", "content": ["  one  ", "two", "Which?"]}]
    pieces = CHUNK.cut_chat("<u>one\ntwo\nWhich?</u>", messages)
    assert text_of(pieces) == "<u>one\ntwo\nWhich?</u>"
    assert marked(pieces) == ["two"]


def test_a_chunk_has_the_same_tokens_everywhere(tokenizer: Tokenizer) -> None:
    found = []
    for text in (f"{ONE}{TWO}Which?", f"{TWO}{ONE}How many?", f"{TWO}{TWO}{ONE}"):
        tokens, asked = CHUNK.encode(tokenizer, CHUNK.cut_text(text), True)
        assert tokenizer.decode(tokens, False) == text
        found.append({tuple(tokens[a:b]) for a, b in asked["reuse/chunk"].chunks})
    assert found[0] == found[1] == found[2]
    assert list(asked) == ["reuse/chunk"]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="chunk_separator must not be empty"):
        ReuseParams(reuse="chunk", chunk_separator="")


def test_only_chunks_have_separators() -> None:
    with pytest.raises(InvalidRequest, match="'edit' takes no chunk_separator"):
        ReuseParams(reuse="edit", chunk_separator="x")
