"""A place in a grammar: what may come, what must, and when it ends."""

from __future__ import annotations

import json
import re
import time
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
from ockham.text.token_bytes import token_bytes
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
        ({"json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "use anyOf, or tell"),
        ({"json": {"type": "object", "minProperties": 2}}, "a free key may come twice"),
        (
            {"json": {"items": {"patternProperties": {"^x[01]$": {}}, "minProperties": 2}}},
            "minProperties 2 cannot be kept",
        ),
        ({"json": {"$ref": "#/x", "x": {"minProperties": 3}}}, "minProperties 3 cannot be kept"),
        ({"json": {"type": "object", "x-guidance": {"lenient": True}}}, "x-guidance"),
        ({"json": {"type": "integer", "divisibleBy": 3}}, "use multipleOf"),
        ({"json": {"minimum": 3, "exclusiveMinimum": True}}, "exclusiveMinimum must be a number"),
        ({"json": {"additionalItems": {"type": "string"}}}, "use prefixItems and items"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"if": {}, "then": {}}}, "if"),
        ({"json": {"propertyNames": {"pattern": "a"}}}, "propertyNames"),
    ],
)
def test_what_is_no_grammar_has_a_reason(asked: dict[str, Any], reason: str) -> None:
    vocabulary = Vocabulary(BACKENDS["byte-level BPE"]())
    with pytest.raises(ValueError, match=reason):
        vocabulary.grammar(**asked)


def takes(vocabulary: Vocabulary, text: str, **asked: Any) -> bool:
    """Whether a text, in tokens of one byte each, follows what is asked for."""
    state = vocabulary.begin(**asked)
    for byte in text.encode():
        if state.complete:
            return False
        state.advance(vocabulary.tokens.index(bytes([byte])))
        if state.error is not None:
            return False
    return state.complete or vocabulary.end in allowed(state)


@pytest.fixture(scope="module")
def lab() -> Vocabulary:
    return Vocabulary(BACKENDS["lab"]())


@pytest.mark.parametrize("before", ["", "?", "!", "// a comment\n", "%import common.INT\n"])
def test_larks_notation_is_taken_as_it_is(lab: Vocabulary, before: str) -> None:
    grammar = before + 'start: "yes" | "no" "::=" rest\nrest: /[0-9]/'
    assert takes(lab, "yes", grammar=grammar)
    assert takes(lab, "no::=7", grammar=grammar)
    assert not takes(lab, "no", grammar=grammar)


def test_gbnf_is_taken_too(lab: Vocabulary) -> None:
    grammar = '# a comment: this\nroot ::= "yes" | no-rule\nno-rule ::= [a-c]{2}\n'
    assert takes(lab, "yes", grammar=grammar)
    assert takes(lab, "ab", grammar=grammar)
    assert not takes(lab, "abc", grammar=grammar)


def test_no_other_spelling_of_a_key_passes_its_schema_by(lab: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "a/b": {"type": "null"}}}
    for key, value, right in (
        ("a", "1", True),
        ("a", '"x"', False),
        ("b", '"x"', True),
        ("\\u0061", '"x"', False),
        ("a\\u002fb", "1", False),
        ("a\\/b", "1", False),
        ("\\u0062", "1", False),
        ("\\n", "1", True),
    ):
        assert takes(lab, f'{{"{key}":{value}}}', json=schema) == right, key
        assert not takes(lab, f'{{"a":1,"{key}":"x"}}', json=schema) or key in ("b", "\\n")


def test_properties_are_counted_where_that_can_be_kept(lab: Vocabulary) -> None:
    one = {"type": "object", "minProperties": 1}
    listed = {"properties": {"a": {}, "b": {}}, "required": ["a", "b"], "minProperties": 3}
    assert not takes(lab, "{}", json=one)
    assert takes(lab, '{"a":1}', json=one)
    assert not takes(lab, '{"a":1,"b":2}', json={"type": "object", **listed})
    assert takes(lab, '{"a":1,"b":2,"c":3}', json={"type": "object", **listed})
    named = {"type": "object", "properties": {"minProperties": {"const": 5}}}
    assert takes(lab, '{"minProperties":5}', json=named)


def test_white_space_has_bounds_unless_it_is_asked_for(lab: Vocabulary) -> None:
    schema = {"type": "object"}
    for text in ('{"a":1}', '{ "a" : 1 }', '{\n  "a": [\n    1, 2\n  ]\n}'):
        assert takes(lab, text, json=schema)
        assert takes(lab, text, json_object=True)
    wide = '{"a":' + " " * 40 + "1}"
    assert not takes(lab, wide, json=schema)
    assert not takes(lab, '{"a":\n\n1}', json_object=True)
    assert takes(lab, wide, json=schema, whitespace_pattern="[ \\n]*")
    assert not takes(lab, '{"a": 1}', json=schema, whitespace_pattern="\n?")
    assert not takes(lab, '{"a": 1}', json=schema, disable_any_whitespace=True)


def test_a_long_text_that_must_come_takes_no_time_at_any_place(lab: Vocabulary) -> None:
    """The tokenizer is not given all of it again and again, with Python's lock held."""
    text = "the quick brown fox " * 6000
    state = lab.begin(choice=[text])
    said, longest_s = b"", 0.0
    for _ in range(50):
        began_s = time.thread_time()
        token = state.forced()[0]
        assert allowed(state) == [token]
        state.advance(token)
        longest_s = max(longest_s, time.thread_time() - began_s)
        said += lab.tokens[token]
    assert text.encode().startswith(said)
    assert longest_s < 0.05
