"""What is asked of a chat, for models whose marks are special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ockham import SamplingParams
from ockham.api.chatting import (
    ChatPlan,
    plan_chat,
    read_tools,
    reasoning_tokens,
    thinking_variables,
)
from ockham.core.errors import InvalidRequest
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured.grammar import Grammar, grammar_text
from ockham.engine.structured.vocabulary import GrammarVocabulary
from ockham.model.hub import BUILT_IN
from ockham.text.tokenizer import Tokenizer
from tests.helpers.families import FAMILIES

llguidance = pytest.importorskip("llguidance")

SPECIAL = (
    *("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>", "<|other|>"),
    *("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|constrain|>"),
    *("[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<tool_call|>", '<|"|>'),
)
TOOLS = [
    {
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        }
    }
]
NAMES = ("lfm2", "gpt-oss", "mistral-args", "mistral", "gemma")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("special")
    lab = Path(BUILT_IN["lab"])
    shutil.copy(lab / "tokenizer_config.json", made)
    backend = Backend.from_file(str(lab / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.save(str(made / "tokenizer.json"))
    return made


def tokenizer_for(directory: Path, name: str) -> Tokenizer:
    template = directory / f"{name}.jinja"
    template.write_text(FAMILIES[name].template)
    return Tokenizer(directory, template)


def planned(tokenizer: Tokenizer, choice: str = "auto") -> ChatPlan:
    return plan_chat(tokenizer, read_tools(TOOLS, choice))


def said(name: str, **message: object) -> str:
    call = {"id": "x" * 9, "function": {"name": "look", "arguments": {"city": "Rome"}}}
    whole = {"role": "assistant", "content": "", "tool_calls": [call], **message}
    return FAMILIES[name].answer(whole).lstrip("\n")


@pytest.mark.parametrize("name", NAMES)
def test_marks_are_seen_and_other_special_tokens_are_not_shown(directory: Path, name: str) -> None:
    tokenizer, params = tokenizer_for(directory, name), SamplingParams()
    plan = planned(tokenizer)
    assert plan.params(params, "").skip_special_tokens is False
    text = said(name, content="So.")
    hidden = text if name == "gpt-oss" else text.replace("So.", "S<|other|>o.")
    tokens = tokenizer.encode(hidden, add_special_tokens=False)
    decoded = tokenizer.decode(tokens, skip_special_tokens=False)
    reply = plan.reply(decoded, "stop", params, "")
    assert reply.content == "So."
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
        ("look", {"city": "Rome"})
    ]
    shown = plan.reply(decoded, "stop", SamplingParams(skip_special_tokens=False), "")
    assert shown.content == ("So." if name == "gpt-oss" else "S<|other|>o.")


@pytest.mark.parametrize("name", NAMES)
def test_grammars_name_special_tokens_by_their_ids(directory: Path, name: str) -> None:
    tokenizer = tokenizer_for(directory, name)
    params = planned(tokenizer, "required").params(SamplingParams(), "")
    assert params.structured_outputs is not None
    grammar = params.structured_outputs.grammar
    assert grammar is not None
    vocabulary = GrammarVocabulary(tokenizer.described, tokenizer.vocab_size)
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, llguidance.grammar_from("lark", grammar))
    assert not matcher.is_error(), matcher.get_error()
    for text in (said(name), said(name, reasoning_content="Rome.")):
        again = matcher.deep_copy()
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert again.try_consume_tokens(tokens) == len(tokens), f"{text!r}\n{grammar}"
        assert again.is_accepting()


def test_thoughts_are_counted_in_tokens(directory: Path) -> None:
    tokenizer = tokenizer_for(directory, "lfm2")
    text = "<think>one two é</think>three"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    plan = plan_chat(tokenizer, read_tools(None))
    _, thoughts = plan.split(text, "stop", SamplingParams(), "")
    count = reasoning_tokens(tokenizer, tokens, thoughts, False)
    end = tokens.index(tokenizer.token_id("</think>"))
    assert count == end + 1
    assert reasoning_tokens(tokenizer, tokens, [], False) == 0


def test_some_of_the_tools_may_be_allowed() -> None:
    tools = [*TOOLS, {"function": {"name": "other"}}]
    named = [{"type": "function", "function": {"name": "other"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    choice = read_tools(tools, allowed)
    assert [tool["function"]["name"] for tool in choice.offered] == ["other"]
    assert choice.bound == choice.offered
    for wrong in ({}, {"mode": "auto", "tools": []}, {"mode": "auto", "tools": [{"name": "no"}]}):
        with pytest.raises(InvalidRequest, match="allowed_tools"):
            read_tools(tools, {"type": "allowed_tools", "allowed_tools": wrong})


def test_efforts_are_what_templates_call_them() -> None:
    assert thinking_variables(None, None) == {}
    off, on = ({"enable_thinking": each, "thinking": each} for each in (False, True))
    assert thinking_variables(None, "none") == off
    assert thinking_variables({}, "low") == {**on, "reasoning_effort": "low"}
    given = {"enable_thinking": False, "reasoning_effort": "x"}
    assert thinking_variables(given, "high") == {**off, "reasoning_effort": "x"}
    assert thinking_variables({**on, "thinking": False}, None) == {**on, "thinking": False}


def test_json_of_a_model_that_thinks_may_have_a_thought_before_it(directory: Path) -> None:
    tokenizer = tokenizer_for(directory, "lfm2")
    plan = plan_chat(tokenizer, read_tools(None))
    asked = StructuredOutputsParams(json={"type": "object"})
    params = SamplingParams(structured_outputs=asked)
    made = plan.params(params, "<|im_start|>assistant\n").structured_outputs
    assert made is not None
    assert made.grammar is not None
    # The prompt holds an empty thought: nothing comes before the answer.
    assert plan.params(params, "<think>\n\n</think>\n\n").structured_outputs == asked


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        ({"regex": "[0-9]+/[0-9]\n"}, "12/3\n", "1."),
        ({"choice": ["Yes/no\n", "No (or $)"]}, "No (or $)", "No or"),
        ({"grammar": 'root ::= "a" [0-9]+ "}"'}, "a12}", "b"),
        ({"grammar": 'start: "a" X\nX: /[0-9]+/\n%ignore / +/'}, "a 12", "b"),
    ],
)
@pytest.mark.parametrize("name", ["lfm2", "gpt-oss"])
def test_what_an_answer_must_look_like_begins_behind_the_thought(
    directory: Path, name: str, asked: dict[str, Any], right: str, wrong: str
) -> None:
    tokenizer = tokenizer_for(directory, name)
    outputs = StructuredOutputsParams(**asked)
    plan = plan_chat(tokenizer, read_tools(None))
    header = "<|channel|>final<|message|>" if name == "gpt-oss" else ""
    thought = ("<think>", "</think>")
    if name == "gpt-oss":
        thought = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
    params = plan.params(SamplingParams(structured_outputs=outputs), "<|im_start|>assistant\n")
    assert params.structured_outputs is not None
    vocabulary = GrammarVocabulary(tokenizer.described, tokenizer.vocab_size)
    grammar = Grammar(vocabulary, grammar_text(params.structured_outputs))
    for before in ("", f"{thought[0]}Hm, b.{thought[1]}"):
        for text, fits in ((right, True), (wrong, False)):
            state = grammar.begin(frozenset({1}))
            tokens = tokenizer.encode(before + header + text, add_special_tokens=False)
            followed = 0
            for token in tokens:
                if not state.mask()[token // 32] >> token % 32 & 1:
                    break
                state.advance(token)
                followed += 1
            assert (followed == len(tokens)) == fits, (before, text)
    whole = plan_chat(tokenizer, read_tools(None), whole=True)
    asked_whole = whole.params(SamplingParams(structured_outputs=outputs), "")
    assert asked_whole.structured_outputs == outputs
    assert asked_whole.thought is None  # its end is the grammar's to say
    budget = SamplingParams(structured_outputs=outputs, thinking_token_budget=2)
    assert plan.params(budget, "").thinking_token_budget == 2
    with pytest.raises(InvalidRequest, match="thinking_token_budget cannot be kept"):
        whole.params(budget, "")
