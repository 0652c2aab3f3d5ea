"""A checkpoint's own response_template, read as transformers reads it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ockham.text.reply.schemas import Tools
from ockham.text.reply.splitter import joined
from ockham.text.reply.style import parse, style_of
from tests.helpers.families import FAMILIES, Talks

CALL = {"type": "function", "function": "{content}"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
TEMPLATES: dict[str, dict[str, Any]] = {
    "hermes": {
        "version": 1,
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "content": "json",
                "repeats": True,
                "transform": CALL,
            },
            "content": {"repeats": True, "join": ""},
        },
    },
    "qwen3-coder": {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>]+)>\s*",
                "close_pattern": r"</function>\s*</tool_call>",
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<parameter=(?P<key>[^>]+)>\n(?P<value>.*?)\n</parameter>"
                },
                "repeats": True,
                "transform": NAMED,
            },
            "content": {"repeats": True, "join": ""},
        },
    },
}
SEED = random.randrange(2**32)


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_split_as_transformers_does(name: str) -> None:
    chat_parsing = pytest.importorskip("transformers.utils.chat_parsing")
    family, spec = FAMILIES[name], TEMPLATES[name]
    style = style_of(family.template, spec)
    assert style.template is not None
    for number in range(100):
        talks = Talks(SEED + number, family)
        message = talks.message()
        text = family.answer(message)
        prompt = family.made.render([{"role": "user", "content": "x"}])
        theirs = chat_parsing.parse_response(text, spec, prefix=prompt, tools=talks.tools)
        tools = Tools(talks.tools)
        ours = parse(text, style, tools, prompt=prompt)
        told = f"seed {SEED + number}: {text!r}"
        assert (ours.content or "").strip() == theirs.get("content", ""), told
        assert (ours.reasoning or "").strip() == theirs.get("reasoning_content", ""), told
        calls = [call["function"] for call in theirs.get("tool_calls", ())]
        found = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in ours.tool_calls]
        assert found == calls, told
        assert ours.warnings == [], told
        splitter = style.splitter(tools, prompt=prompt)
        deltas = [splitter.feed(piece) for piece in talks.pieces(text)]
        again = joined([*deltas, splitter.finish()])
        assert (again.content, again.reasoning) == (ours.content, ours.reasoning), told
        assert [(c.name, c.arguments) for c in again.tool_calls] == [
            (c.name, c.arguments) for c in ours.tool_calls
        ]
        for length in range(0, len(text), 7):
            parse(text[:length], style, tools, prompt=prompt)


def test_a_prompt_may_have_opened_a_region() -> None:
    style = style_of("", TEMPLATES["hermes"])
    reply = parse("so</think>yes", style, prompt="<|im_start|>assistant\n<think>\n")
    assert (reply.reasoning, reply.content) == ("so", "yes")


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"fields": {}},
        {"fields": {"content": {}}},
        {"version": 2, "start_anchor": "x", "fields": {"content": {}}},
        {"start_anchor": "x", "fields": {"content": {"open_pattern": "("}}},
        {"start_anchor": "x", "fields": {"content": {"content": "yaml"}}},
        {"start_anchor": "x", "fields": {"content": {}, "thinking": {}}},
    ],
)
def test_a_template_that_is_of_no_use_is_passed_over_with_a_note(spec: dict[str, Any]) -> None:
    style = style_of("<tool_call>", spec)
    assert style.template is None
    assert style.note is not None
    assert "response_template" in style.note
    assert style.format is not None


def test_an_expression_without_end_makes_the_rest_a_text() -> None:
    spec = {
        "start_anchor": "x",
        "fields": {"thinking": {"open_pattern": r"(a+)+(b+)*\1+$x"}, "content": {}},
    }
    reply = parse("a" * 5000 + "!", style_of("", spec))
    assert reply.content == "a" * 5000 + "!"


def test_a_call_that_cannot_be_read_is_text() -> None:
    style = style_of("", TEMPLATES["hermes"])
    text = '<tool_call>{"name": }</tool_call>'
    reply = parse(text, style, Tools())
    assert (reply.content, reply.tool_calls) == (text, [])
    assert reply.warnings
