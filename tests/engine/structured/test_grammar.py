"""A place in a grammar: what may come, what must, and when it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured.grammar import Grammar, GrammarState, grammar_text
from ockham.engine.structured.vocabulary import GrammarVocabulary
from ockham.model.token_bytes import token_bytes
from tests.helpers.grammars import SCHEMA
from tests.helpers.tiny_tokenizers import KINDS

LAB = Path(__file__).parents[3] / "ockham" / "model" / "lab" / "tokenizer.json"
BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "lab": lambda: Tokenizer.from_file(str(LAB)),
    **KINDS,
}
PAD = 5
"""Ids that a model has beyond its tokenizer's."""


class Vocabulary:
    def __init__(self, backend: Tokenizer) -> None:
        described = backend.to_str()
        self.tokens, self.special = token_bytes(described)
        self.size = len(self.tokens) + PAD
        self.known = GrammarVocabulary(described, self.size)
        self.end = backend.token_to_id("</s>") or 0

    def grammar(self, **asked: Any) -> Grammar:
        return Grammar(self.known, grammar_text(StructuredOutputsParams(**asked)))

    def begin(self, **asked: Any) -> GrammarState:
        return self.grammar(**asked).begin(frozenset({self.end}))


@pytest.fixture(scope="module", params=[kind for kind in BACKENDS if kind != "Unigram"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(BACKENDS[request.param]())


def allowed(state: GrammarState) -> list[int]:
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def ramble(vocabulary: Vocabulary, state: GrammarState, seed: int, most: int = 400) -> bytes | None:
    """A text of random tokens of those that may come; None if it is not complete by then."""
    rng = Random(seed)
    text = b""
    for _ in range(most):
        if state.complete:
            return text
        choices = allowed(state)
        forced = state.forced()
        assert choices, "a place that is not complete has a way on"
        if forced:
            assert choices == [forced[0]]
        token = rng.choice(choices)
        if token == vocabulary.end:
            return text
        text += vocabulary.tokens[token]
        state.advance(token)
        assert state.error is None
    return None


@pytest.mark.parametrize(
    "pattern", ["(ab|cd)+e", "[0-9]{1,3}(, [0-9]{1,3})*", "the (dog|fox) [a-t]{2,4}", "na\u00efve?"]
)
def test_texts_match_their_regular_expression(vocabulary: Vocabulary, pattern: str) -> None:
    found = [ramble(vocabulary, vocabulary.begin(regex=pattern), seed) for seed in range(12)]
    texts = [text.decode() for text in found if text is not None]
    assert texts
    for text in texts:
        assert re.fullmatch(pattern, text), text


def test_texts_are_json_of_their_schema(vocabulary: Vocabulary) -> None:
    for seed in range(6):
        state = vocabulary.begin(json=SCHEMA, disable_any_whitespace=True)
        text = ramble(vocabulary, state, seed)
        if text is None:
            continue
        value = json.loads(text)
        assert list(value) == list(SCHEMA["properties"])
        assert isinstance(value["identifier"], int)
        assert value["answer"] in ("negative", "neither")


def test_every_choice_can_come_and_nothing_else(vocabulary: Vocabulary) -> None:
    choices = ["fox", "fo", "d.g (*)", "jumps over"]
    found = {ramble(vocabulary, vocabulary.begin(choice=choices), seed) for seed in range(80)}
    assert {text.decode() for text in found if text is not None} == set(choices)


def test_the_end_may_come_exactly_where_the_text_may_end(vocabulary: Vocabulary) -> None:
    choices = ["fo", "fox"]
    state = vocabulary.begin(choice=choices)
    text = b""
    while not state.complete:
        assert (vocabulary.end in allowed(state)) == (text.decode() in choices)
        token = next(t for t in allowed(state) if t != vocabulary.end)
        text += vocabulary.tokens[token]
        state.advance(token)
    assert text == b"fox"


def test_without_ends_a_text_ends_only_where_it_must(vocabulary: Vocabulary) -> None:
    state = vocabulary.grammar(choice=["fo", "fox"]).begin(frozenset())
    text = b""
    while not state.complete:
        assert vocabulary.end not in allowed(state)
        token = allowed(state)[0]
        text += vocabulary.tokens[token]
        state.advance(token)
    assert text == b"fox"


def test_special_tokens_and_those_of_no_text_never_come(vocabulary: Vocabulary) -> None:
    state = vocabulary.begin(regex="(.|\n)+")
    never = {*vocabulary.special, *(i for i, t in enumerate(vocabulary.tokens) if not t)}
    never |= set(range(len(vocabulary.tokens), vocabulary.size))
    assert not never & set(allowed(state)) - {vocabulary.end}
    assert len(state.mask()) * 32 >= vocabulary.size


def test_the_name_of_a_special_token_is_text(vocabulary: Vocabulary) -> None:
    state = vocabulary.begin(choice=["</s> the end", "</s> other"])
    found = {ramble(vocabulary, state.fresh(), seed) for seed in range(20)}
    assert found <= {b"</s> the end", b"</s> other", None}
    assert found - {None}


def test_what_must_come_is_known_before() -> None:
    vocabulary = Vocabulary(BACKENDS["lab"]())
    schema = {"properties": {"customer_identifier": {"type": "integer"}}} | {
        "type": "object",
        "required": ["customer_identifier"],
    }
    state = vocabulary.begin(json=schema, disable_any_whitespace=True)
    forced = state.forced()
    assert b"".join(vocabulary.tokens[t] for t in forced) == b'{"customer_identifier":'
    for number, token in enumerate(forced):
        assert state.forced() == forced[number:]
        assert allowed(state) == [token]
        state.advance(token)
    assert state.forced() == ()


def test_a_place_depends_on_its_tokens_alone() -> None:
    vocabulary = Vocabulary(BACKENDS["lab"]())
    grammar = vocabulary.grammar(json=SCHEMA)
    watched, blind = grammar.begin(frozenset({1})), grammar.begin(frozenset({1}))
    rng, tokens = Random(3), []
    while not watched.complete and len(tokens) < 60:
        watched.forced()
        tokens.append(rng.choice([t for t in allowed(watched) if t != 1]))
        watched.advance(tokens[-1])
    for token in tokens:
        blind.advance(token)
    assert blind.complete == watched.complete
    if not blind.complete:
        assert allowed(blind) == allowed(watched)
    assert allowed(watched.fresh()) == allowed(grammar.begin(frozenset({1})))


def test_a_vocabulary_without_all_bytes_says_what_it_can_and_no_more() -> None:
    vocabulary = Vocabulary(BACKENDS["Unigram"]())
    assert not vocabulary.known.spells_all
    found = {ramble(vocabulary, vocabulary.begin(choice=["fox", "dog"]), s) for s in range(20)}
    assert found == {b"fox", b"dog"}
    with pytest.raises(ValueError, match="allows no text"):
        vocabulary.grammar(json=SCHEMA)
    state = vocabulary.begin(choice=["a fox*"])
    while allowed(state):
        state.advance(allowed(state)[0])
    assert state.error
    assert not state.complete


def test_a_wrong_token_is_an_error_and_no_end() -> None:
    vocabulary = Vocabulary(BACKENDS["lab"]())
    state = vocabulary.begin(choice=["fo", "fox"])
    state.advance(vocabulary.tokens.index(b"z"))
    assert state.error
    assert not state.complete
    assert allowed(state) == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"regex": "a("}, "unclosed group"),
        ({"json": {"type": "objec"}}, "Invalid type"),
        ({"json": {"type": "string", "not": {"const": "a"}}}, "Unimplemented keys"),
        ({"grammar": "start: missing"}, "unknown name"),
        ({"json": {"$ref": "#"}}, "allows no text"),
        ({"regex": "()"}, "allows no text"),
    ],
)
def test_what_is_no_grammar_has_a_reason(asked: dict[str, Any], reason: str) -> None:
    vocabulary = Vocabulary(BACKENDS["byte-level BPE"]())
    with pytest.raises(ValueError, match=reason):
        vocabulary.grammar(**asked)
