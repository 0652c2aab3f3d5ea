"""Prompts that ask for the text between two others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham import InvalidRequest
from ockham.api.prompts import PromptReader
from ockham.text.fill_in import CUT_TOKENS, FAMILIES, Extra, Family, FillIn, find
from ockham.text.tokenizer import Tokenizer
from tests.helpers.tiny_tokenizers import byte_level_bpe


def vocabulary(*tokens: str):
    ids = {token: number for number, token in enumerate(tokens, 1000)}
    return ids.get


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.name)
def test_each_family_is_found_by_its_spellings(family: Family) -> None:
    spelled = (family.prefix, family.suffix, family.middle, family.repo, family.file)
    words = [each for each in (*spelled, *family.ends) if each is not None]
    token_id = vocabulary(*words)
    found = find(token_id, {})
    assert found is not None
    assert found.prefix == token_id(family.prefix)
    assert found.suffix == token_id(family.suffix)
    assert found.file == (None if family.file is None else token_id(family.file))
    assert found.suffix_first == family.suffix_first
    assert {token_id(word) for word in words} == set(found.ends)
    made = found.prompt(encode, [], "a", "b").token_ids
    head, tail = [found.prefix, *b"a"], [found.suffix, *b"b"]
    middle = [] if found.middle is None else [found.middle]
    assert made == (tail + head if family.suffix_first else head + tail) + middle


def test_what_a_gguf_file_names_is_taken() -> None:
    token_id = vocabulary("<a>", "<b>", "<c>", "<pad>")
    named = {"prefix": "<a>", "suffix": "<b>", "middle": "<c>", "pad": "<pad>"}
    found = find(token_id, named)
    assert found == FillIn(1000, 1001, 1002, None, None, (1000, 1001, 1002, 1003), False)
    assert find(token_id, {}) is None


def test_other_files_come_first_as_the_model_knows_them() -> None:
    family = FAMILIES[0]
    words = (family.prefix, family.suffix, family.middle, family.repo, family.file)
    found = find(vocabulary(*(word for word in words if word)), {})
    assert found is not None
    made = found.prompt(encode, [7], "x", "y", [Extra("a.py", "one"), Extra("b.py", "two")])
    repo, file = 1003, 1004
    assert made.token_ids[:2] == [7, repo]
    assert made.token_ids.count(file) == 3  # two files, and the one that is written
    assert made.token_ids.index(1000) > made.token_ids.index(file)


def test_what_has_no_room_is_cut_by_steps() -> None:
    found = FillIn(1000, 1001, 1002, None, None, (), False)
    extra = [Extra("a", "e" * 4000)]
    room, starts = 3000, set()
    for typed in range(100):
        before, behind = "p" * 2500 + "q" * typed, "s" * 2000
        made = found.prompt(encode, [1], before, behind, extra, room)
        assert made.cut
        assert len(made.token_ids) <= room
        assert len(made.token_ids) > room - 2 * CUT_TOKENS
        assert made.token_ids[-1] == 1002
        starts.add(tuple(made.token_ids[:1000]))
    assert len(starts) <= 2  # the cut moves once in many keystrokes
    assert not found.prompt(encode, [], "a", "b", (), 100).cut
    for room in (5, 10, 40):
        made = found.prompt(encode, [1], "p" * 100, "s" * 100, extra, room)
        assert len(made.token_ids) <= room


def test_a_model_without_the_tokens_says_so(tmp_path: Path) -> None:
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.fill_in is None
    reader = PromptReader(tokenizer, 100, "as the test says")
    with pytest.raises(InvalidRequest, match="no tokens to fill in text") as refused:
        reader.read_fill_in("a", "b")
    assert refused.value.param == "suffix"
