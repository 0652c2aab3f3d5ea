"""Grammars of calls: they take what the families' templates write, and leave nothing else."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ockham.engine.structured.vocabulary import GrammarVocabulary
from ockham.model.hub import BUILT_IN
from ockham.text.reply.grammar import Grammar
from ockham.text.reply.schemas import Tools, check_tools
from ockham.text.reply.style import Style, parse
from ockham.text.tokenizer import Tokenizer
from tests.helpers.families import FAMILIES, Family

llguidance = pytest.importorskip("llguidance")

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "near": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city", "days"],
}
TOOLS = check_tools(
    [
        {"type": "function", "function": {"name": "look", "parameters": PLACE}},
        {"type": "function", "function": {"name": "stop"}},
    ]
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(BUILT_IN["lab"])


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    return GrammarVocabulary(tokenizer.described, tokenizer.vocab_size)


def takes(grammar: str, text: str, vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> bool:
    """Whether a text is one of the grammar, from its beginning to its end."""
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, llguidance.grammar_from("lark", grammar))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    taken: int = matcher.try_consume_tokens(tokens)
    return taken == len(tokens) and bool(matcher.is_accepting())


def answer(family: Family, *calls: tuple[str, dict[str, Any]], **message: Any) -> str:
    made = [
        {"id": "x" * 9, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in calls
    ]
    said = {"role": "assistant", "content": "", "tool_calls": made, **message}
    return family.answer(said).lstrip("\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_required_calls_are_what_the_template_writes(
    name: str, vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    if name == "smollm":
        pytest.skip("written without the brackets of a list")
    family = FAMILIES[name]
    grammar = Grammar(family.found, family.thought, lambda _: None)
    one = grammar.required(TOOLS, parallel=False, in_thought=False)
    several = Grammar(family.found, family.thought, lambda _: None).required(
        TOOLS, parallel=True, in_thought=False
    )
    calls: list[tuple[str, dict[str, Any]]] = [
        ("look", {"city": "Rome", "days": 2}),
        ("look", {"city": "a\nb", "unit": "F", "days": -1, "near": ["x", "y"]}),
        ("stop", {}),
    ]
    for call in calls:
        text = answer(family, call)
        assert takes(one, text, vocabulary, tokenizer), f"{text!r}\n{one}"
        assert takes(several, text, vocabulary, tokenizer)
    text = answer(family, calls[0], reasoning_content="Rome, then.")
    assert takes(one, text, vocabulary, tokenizer), f"{text!r}\n{one}"
    two = answer(family, calls[0], calls[2])
    assert not takes(one, two, vocabulary, tokenizer)
    if name != "gpt-oss":  # whose calls end the answer
        assert takes(several, two, vocabulary, tokenizer), f"{two!r}\n{several}"
    for wrong in [("look", {"city": "Rome"}), ("look", {"city": "R", "days": "x"}), ("no", {})]:
        assert not takes(one, answer(family, wrong), vocabulary, tokenizer)
    assert not takes(one, "Rome is fine.", vocabulary, tokenizer)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("gpt-oss", "smollm")])
def test_strict_calls_are_bound_from_their_opening_mark_on(
    name: str, vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    family = FAMILIES[name]
    grammar = Grammar(family.found, family.thought, lambda _: None).lazy(TOOLS, in_thought=False)
    if grammar is None:
        assert "llama" in name or name == "minicpm"
        return
    call = answer(family, ("look", {"city": "Rome", "days": 2}))
    assert takes(grammar, "Rome [is] {fine} <b>.", vocabulary, tokenizer), grammar
    assert takes(grammar, call, vocabulary, tokenizer), grammar
    assert takes(grammar, f"Let me see. {call}", vocabulary, tokenizer)
    wrong = answer(family, ("look", {"city": "Rome", "days": "x"}))
    assert not takes(grammar, wrong, vocabulary, tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_the_grammar_leaves_is_read_as_a_call(
    name: str, vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    family, draw = FAMILIES[name], random.Random(5)
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 20},
            "u": {"enum": ["a", "b c"], "type": "string"},
            "b": {"type": "boolean"},
        },
        "required": ["u"],
    }
    tools = check_tools([{"function": {"name": "f", "parameters": schema}}])
    text = Grammar(family.found, None, lambda _: None).required(
        tools, parallel=True, in_thought=False
    )
    if name == "gpt-oss":  # without the thought, which may go on for ever
        text = "start: " + text[text.index(")? ") + 3 :]
    for _ in range(5):
        matcher = llguidance.LLMatcher(vocabulary.tokenizer, llguidance.grammar_from("lark", text))
        tokens: list[int] = []
        while len(tokens) < 600 and not (matcher.is_accepting() and draw.random() < 0.5):
            mask = matcher.compute_logit_bias()
            allowed = [i for i, bit in enumerate(mask) if bit and i < tokenizer.vocab_size]
            if not allowed:
                break
            tokens.append(draw.choice(allowed))
            matcher.consume_token(tokens[-1])
        said = tokenizer.decode(tokens)
        reply = parse(said, Style(format=family.found), Tools(tools))
        assert reply.tool_calls, said
        assert not reply.warnings, said
        for call in reply.tool_calls:
            arguments = json.loads(call.arguments)
            assert arguments["u"] in ("a", "b c")
            assert arguments.get("n", 0) in range(21)
            assert arguments.get("b", True) in (True, False)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "smollm"])
def test_json_is_asked_of_the_answer_alone(
    name: str, vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    family = FAMILIES[name]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

    def made(tools: list[dict[str, Any]], in_thought: bool = False) -> str:
        grammar = Grammar(family.found, family.thought, lambda _: None)
        return grammar.answer(schema, tools, parallel=True, in_thought=in_thought)

    said = {"tool_calls": [], "content": '{"a": 1}'}
    call = ("look", {"city": "Rome", "days": 2})
    for message in (said, {**said, "reasoning_content": "One."}):
        text = family.answer({"role": "assistant", **message})
        assert takes(made([]), text, vocabulary, tokenizer), f"{text!r}\n{made([])}"
        assert takes(made(TOOLS), text, vocabulary, tokenizer)
    may_call = "llama" not in name  # whose calls begin like the answer
    assert takes(made(TOOLS), answer(family, call), vocabulary, tokenizer) == may_call
    assert not takes(made([]), answer(family, call), vocabulary, tokenizer)
    assert not takes(made(TOOLS), "One.", vocabulary, tokenizer)
    if family.thought is not None:
        open_ = made([], in_thought=True)
        close = family.thought.close
        assert takes(open_, f'One.{close}\n\n{{"a": 1}}', vocabulary, tokenizer)
        assert not takes(open_, "One.", vocabulary, tokenizer)
