"""Answers of every family are split into thoughts, text and calls, however they come."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.core.outputs import Reply
from ockham.text.reply.formats import (
    FORMATS,
    FRAMES,
    THOUGHTS,
    Frame,
    format_of,
    frame_of,
    thought_of,
)
from ockham.text.reply.schemas import Tools
from ockham.text.reply.splitter import ReplyDelta, Splitter, joined
from ockham.text.reply.style import Style, parse
from tests.helpers.families import FAMILIES, THINK, Family, Talks

SEED = random.randrange(2**32)


def style(family: Family) -> Style:
    return Style(format=family.found, thought=family.thought)


def streamed(
    text: list[str], style: Style, tools: Tools | None = None, **how: Any
) -> tuple[list[ReplyDelta], Splitter]:
    parser = style.splitter(tools, **how)
    deltas = [parser.feed(piece) for piece in text]
    return [*deltas, parser.finish()], parser


def plain(reply: Reply) -> dict[str, Any]:
    return {
        "content": reply.content or "",
        "reasoning": reply.reasoning,
        "calls": [(call.name, json.loads(call.arguments)) for call in reply.tool_calls],
    }


def said(message: dict[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return {
        "content": message["content"],
        "reasoning": message.get("reasoning_content"),
        "calls": [(call["name"], call["arguments"]) for call in calls],
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_format_is_chosen_by_what_the_template_contains(name: str) -> None:
    family = FAMILIES[name]
    assert family.found.name == family.format
    if family.thought is not None:
        assert thought_of(family.template) == family.thought


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_come_back_as_they_were_said(name: str) -> None:
    family = FAMILIES[name]
    for number in range(200):
        talks = Talks(SEED + number, family)
        message = talks.message()
        text = family.answer(message)
        tools = Tools(talks.tools)
        whole = parse(text, style(family), tools)
        told = f"seed {SEED + number}: {text!r}"
        assert plain(whole) == said(message), told
        assert whole.warnings == [], told
        deltas, parser = streamed(talks.pieces(text), style(family), tools)
        assert plain(joined(deltas)) == said(message), told
        assert plain(parser.reply()) == plain(whole), told


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_is_cut_anywhere_is_no_error(name: str) -> None:
    family = FAMILIES[name]
    for number in range(3):
        talks = Talks(SEED + number, family)
        message = next(m for m in iter(talks.message, None) if m.get("tool_calls"))
        written = family.answer(message).encode()
        tools = Tools(talks.tools)
        for length in range(len(written)):
            text = written[:length].decode(errors="ignore")
            whole = parse(text, style(family), tools)
            for call in whole.tool_calls:
                assert isinstance(json.loads(call.arguments), dict)
            deltas, _ = streamed(list(text), style(family), tools)
            for delta in deltas:
                for piece in (delta.content, delta.reasoning, *(c.arguments for c in delta.calls)):
                    piece.encode()  # no half of a character


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mark_in_which_an_answer_is_cut_is_no_text(name: str) -> None:
    """Wherever `max_tokens` cuts: what is no broken call is the text that was said before it."""
    family = FAMILIES[name]
    for number in range(2):
        talks = Talks(SEED + number, family)
        message = next(m for m in iter(talks.message, None) if m.get("tool_calls"))
        written, tools = family.answer(message), Tools(talks.tools)
        complete = said(message)
        for length in range(len(written)):
            told = f"seed {SEED + number}: {written[:length]!r}"
            reply = parse(written[:length], style(family), tools, cut=True)
            pieces, parser = list(written[:length]), style(family).splitter(tools)
            deltas = [*(parser.feed(piece) for piece in pieces), parser.finish(cut=True)]
            assert plain(parser.reply()) == plain(reply), told
            if reply.warnings or family.found.bare or family.found.channels:
                continue  # the call is given as text; or it begins like any text
            content = (reply.content or "").rstrip("<|｜[/ \n")
            assert complete["content"].startswith(content), told
            assert (joined(deltas).content or "").rstrip("<|｜[/ \n") == content, told
            thought = (reply.reasoning or "").rstrip("<|｜[/ \n")
            assert (complete["reasoning"] or "").startswith(thought), told


@pytest.mark.parametrize("size", range(1, len("</tool_call>")))
@pytest.mark.parametrize("cut", [False, True])
def test_a_part_of_the_closing_mark_is_never_text(size: int, cut: bool) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n'
    chosen = Style(format=format_of("<tool_call>"), thought=None)
    reply = parse(call + "</tool_call>"[:size], chosen, Tools(), cut=cut)
    assert (reply.content, reply.warnings) == (None, [])
    assert [each.name for each in reply.tool_calls] == ["f"]


def test_an_answer_that_the_model_ended_keeps_what_looks_like_a_part_of_a_mark() -> None:
    chosen = Style(format=format_of("<tool_call>"), thought=THINK)
    for text in ("if a <t", "So: <tool_cal"):
        assert parse(text, chosen, Tools()).content == text
    assert parse("So: <tool_cal", chosen, Tools(), cut=True).content == "So: "
    assert parse("if a <", chosen, Tools(), cut=True).content == "if a <"
    assert parse("<thin", chosen, Tools(), cut=True).content == ""
    assert parse("<think>\nso</thi", chosen, Tools(), cut=True).reasoning == "so"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(arguments=st.dictionaries(st.text(), VALUES), cut=st.randoms())
@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize(
    "name", ["hermes", "mistral", "granite3", "mistral-args", "gpt-oss", "deepseek-v3"]
)
def test_arguments_of_any_shape_come_back(
    name: str, arguments: dict[str, Any], cut: random.Random
) -> None:
    family = FAMILIES[name]
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    text = family.answer({"role": "assistant", "content": "", "tool_calls": [call]})
    deltas, parser = streamed(list(text), style(family), Tools())
    [found] = parser.reply().tool_calls
    assert json.loads(found.arguments) == arguments
    assert json.loads(joined(deltas).tool_calls[0].arguments) == arguments
    assert parser.warnings == []


@given(values=st.lists(st.text(), max_size=4))
@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize(
    "name", ["qwen3-coder", "glm", "glm-4.7", "deepseek-v3.2", "minicpm", "gemma", "lfm2"]
)
def test_texts_of_any_kind_come_back_from_tags_and_literals(name: str, values: list[str]) -> None:
    family = FAMILIES[name]
    if any(never in value for never in family.never for value in values):
        return
    arguments = {f"k{i}": value for i, value in enumerate(values)}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    text = family.answer({"role": "assistant", "content": "", "tool_calls": [call]})
    deltas, parser = streamed(list(text), style(family), Tools())
    [found] = parser.reply().tool_calls
    assert json.loads(found.arguments) == arguments
    assert joined(deltas).tool_calls == [found]


PARTS = sorted(
    {mark for format_ in FORMATS for mark in format_.marks}
    | {part for thought in THOUGHTS for part in (thought.open, thought.close)}
    | {
        '{"name": "f", ',
        '"arguments": ',
        "{",
        "}",
        "[",
        "]",
        "f(",
        "a=",
        ")",
        "call:f",
        "<function=f>",
    }
    | {
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "<arg_key>",
        "to=functions.f",
        '"',
        "'",
        "\\",
        "\\u",
    }
    | {
        '<function name="f">',
        '<param name="',
        "[ARGS]",
        '<|"|>',
        "\n",
        " ",
        ",",
        "1",
        "\ud800",
        "é",
    }
)


@given(parts=st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=30), data=st.data())
@settings(max_examples=400, deadline=None)
def test_no_text_is_an_error(parts: list[str], data: st.DataObject) -> None:
    format_ = data.draw(st.sampled_from(FORMATS))
    chosen = Style(format=format_, thought=data.draw(st.sampled_from(THOUGHTS)))
    text = "".join(parts)
    tools = Tools([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    whole = parse(text, chosen, tools, hidden=["<|x|>"])
    for call in whole.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
    deltas, parser = streamed(list(text), chosen, tools, hidden=["<|x|>"])
    again = parser.reply()
    assert [(c.name, c.arguments) for c in again.tool_calls] == [
        (c.name, c.arguments) for c in whole.tool_calls
    ]
    assert (again.content, again.reasoning) == (whole.content, whole.reasoning)
    if not any("could not be read" in warning for warning in whole.warnings):
        assert joined(deltas).content == whole.content


@given(text=st.text())
@settings(deadline=None)
def test_a_text_without_calls_and_thoughts_stays_as_it_is(text: str) -> None:
    deltas, _ = streamed(list(text), Style(format=FORMATS[10], thought=THINK), Tools())
    assert joined(deltas).content == text


def test_what_is_no_call_is_text_with_a_warning() -> None:
    text = 'So: <tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call> done'
    reply = parse(text, Style(format=format_of("<tool_call>"), thought=None), Tools())
    assert reply.content == text
    assert reply.tool_calls == []
    assert "could not be read" in reply.warnings[0]


def test_a_call_that_is_cut_is_text_with_a_warning() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": [1, 2'
    reply = parse(text, Style(format=format_of("<tool_call>"), thought=None), Tools())
    assert (reply.content, reply.tool_calls) == (text, [])
    assert reply.warnings


def test_a_prompt_may_have_opened_the_thought() -> None:
    chosen = Style(thought=THINK)
    reply = parse("so\n</think>\n\nyes", chosen, prompt="<|im_start|>assistant\n<think>\n")
    assert (reply.reasoning, reply.content) == ("so", "yes")
    closed = parse("yes", chosen, prompt="<think>\n\n</think>\n\n")
    assert (closed.reasoning, closed.content) == (None, "yes")


def test_a_call_ends_a_thought_that_was_not_closed() -> None:
    text = '<think>I call it.\n<tool_call>{"name": "f"}</tool_call>'
    reply = parse(text, Style(format=format_of("<tool_call>"), thought=THINK), Tools())
    assert reply.reasoning == "I call it."
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("f", "{}")]


def test_a_thought_that_does_not_end_is_reasoning() -> None:
    reply = parse("<think>\nwell, ", Style(thought=THINK))
    assert (reply.reasoning, reply.content) == ("well,", "")


def test_an_answer_in_json_is_no_call_where_no_tool_is_named() -> None:
    llama = format_of("<|python_tag|>")
    tools = Tools([{"type": "function", "function": {"name": "f"}}])
    for text in ('{"answer": 5}', '{"name": "g", "parameters": {}}', "[1, 2]", "{"):
        reply = parse(text, Style(format=llama, thought=None), tools)
        assert (reply.content, reply.tool_calls, reply.warnings) == (text, [], [])


def test_arguments_come_while_they_are_written() -> None:
    parser = Style(format=format_of("<tool_call>"), thought=None).splitter(Tools())
    parser.feed('<tool_call>{"name": "write", "arguments": {"text": "a long')
    delta = parser.feed(" story about")
    assert delta.calls[0].arguments == " story about"
    tagged = Style(format=FAMILIES["qwen3-coder"].found, thought=None).splitter(Tools())
    tagged.feed("<tool_call>\n<function=write>\n<parameter=text>\nA long")
    assert tagged.feed(" story").calls[0].arguments == " story"


def test_arguments_have_the_types_of_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "s": {"type": "string"},
            "e": {"$ref": "#/$defs/Point"},
            "b": {"type": ["boolean", "null"]},
            "f": {"type": "number"},
        },
        "$defs": {"Point": {"type": "object"}},
    }
    tools = Tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    for key, raw, expected in [
        ("n", "12", "12"),
        ("n", "None", "null"),
        ("n", "x", '"x"'),
        ("e", '{"x": 1}', '{"x": 1}'),
        ("b", "True", "true"),
        ("f", "1e400", '"1e400"'),
        ("f", "2", "2"),
    ]:
        assert tools.as_json("f", key, raw) == expected
    assert tools.is_text("f", "s")
    assert tools.is_text("f", "unknown")


def test_a_long_text_is_forgotten_as_it_is_read() -> None:
    parser = Style(format=format_of("<tool_call>"), thought=THINK).splitter(Tools())
    for _ in range(1000):
        assert parser.feed("word " * 20)
    assert len(parser.reader.text) < 20_000


def test_thoughts_are_counted_in_characters_with_their_marks() -> None:
    parser = Style(thought=THINK).splitter()
    for letter in "<think>ab</think>cd":
        parser.feed(letter)
    parser.finish()
    assert parser.thoughts == [(0, len("<think>ab</think>"))]


@pytest.mark.parametrize("kind", ["json", "<|constrain|>json"])
@pytest.mark.parametrize("thought", ["", "Hm."])
def test_a_call_of_gpt_oss_may_name_its_tool_before_its_channel(kind: str, thought: str) -> None:
    """As its chat template writes calls of earlier turns: the prompt ends within the header."""
    before = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else ""
    text = f'{before} to=functions.f<|channel|>commentary {kind}<|message|>{{"a": 1}}<|call|>'
    own = style(FAMILIES["gpt-oss"])
    for pieces in ([text], list(text)):
        deltas, parser = streamed(pieces, own, Tools())
        expected = {"content": "", "reasoning": thought or None, "calls": [("f", {"a": 1})]}
        assert plain(parser.reply()) == plain(joined(deltas)) == expected


def test_text_of_gpt_oss_that_begins_with_a_word_like_a_recipient_is_text() -> None:
    for text in (" to", " tomorrow", " to you"):
        assert parse(text, style(FAMILIES["gpt-oss"]), Tools()).content == text


FRAMED = {
    "<think>\nSo\n</think>\n{open}\nIt is 4.\n\nSure.\n{close}\n": ("So", "It is 4.\n\nSure."),
    "<think>\n\n</think>\n{open}\nYes\n{close}": (None, "Yes"),
    "{open}a {close}": (None, "a"),
    "No frame, but a {open} mark.": (None, "No frame, but a {open} mark."),
    "<think>x</think>{open}\ncut": ("x", "cut"),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("written", FRAMED)
@pytest.mark.parametrize("looks_for_calls", [False, True])
def test_what_stands_around_an_answer_is_left_out(
    frame: Frame, written: str, looks_for_calls: bool
) -> None:
    template = f"<think></think>{frame.open}{frame.close}<tool_call>"
    assert frame_of(template) == frame
    own = Style(format=format_of(template), thought=thought_of(template), frame=frame_of(template))
    text = written.replace("{open}", frame.open).replace("{close}", frame.close)
    reasoning, content = FRAMED[written]
    expected = {"content": content.replace("{open}", frame.open), "reasoning": reasoning}
    tools = Tools([]) if looks_for_calls else None
    assert plain(parse(text, own, tools)) == {**expected, "calls": []}
    deltas, _ = streamed(list(text), own, tools)
    assert plain(joined(deltas)) == {**expected, "calls": []}


def test_a_call_may_stand_behind_a_framed_answer() -> None:
    own = Style(format=FAMILIES["hermes"].found, thought=THINK, frame=FRAMES[0])
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    text = f"<think>a</think>\n<response>\nLet me see.\n</response>\n{call}\n"
    found = plain(parse(text, own, Tools([])))
    assert found == {"content": "Let me see.", "reasoning": "a", "calls": [("f", {})]}


def test_frames_are_known_by_templates_that_think_and_write_both_marks() -> None:
    assert frame_of("<think></think><answer>") is None
    assert frame_of("<answer></answer>") is None


def test_calls_of_the_later_models_are_read_as_they_write_them() -> None:
    seed = format_of("{%- set toolcall_begin_token = '<seed:tool_call>' -%}<function=<parameter=")
    text = "A.\n<seed:tool_call>\n<function=f>\n<parameter=a>x\ny</parameter>\n</function>\n"
    found = plain(parse(text + "</seed:tool_call>", Style(format=seed), Tools([])))
    assert found == {"content": "A.", "reasoning": None, "calls": [("f", {"a": "x\ny"})]}
    olmo = Style(format=format_of("<function_calls>"))
    text = "Now.\n<function_calls>f(a='x', b=2)\n g()</function_calls>"
    found = plain(parse(text, olmo, Tools([])))
    assert found["calls"] == [("f", {"a": "x", "b": 2}), ("g", {})]
    assert found["content"] == "Now."


FENCED = "<|tool_call_start|>\n```python\nf(a='x', b=2)\ng()\n```\n<|tool_call_end|>"


@pytest.mark.parametrize("before", ["", "<|thought_start|>\nSo.\n<|thought_end|>\n"])
@pytest.mark.parametrize("after", ["", "\nI ask both."])
def test_calls_between_fences_are_read(before: str, after: str) -> None:
    """Of MiniCPM 4, whose answer may go on behind them."""
    template = "<|thought_end|><|tool_call_start|>\n```python\n<|tool_call_end|>"
    own = Style(format=format_of(template), thought=thought_of(template))
    found = plain(parse(before + FENCED + after, own, Tools([])))
    assert found["calls"] == [("f", {"a": "x", "b": 2}), ("g", {})]
    assert found["content"] == after.strip()
    assert found["reasoning"] == ("So." if before else None)
    deltas, _ = streamed(list(before + FENCED + after), own, Tools([]))
    assert plain(joined(deltas)) == found


@pytest.mark.parametrize("cut", range(len("\n```\n<|tool_call_end|>")))
def test_a_fence_in_which_an_answer_is_cut_is_no_text(cut: int) -> None:
    style = Style(format=format_of("<|tool_call_start|>```python"))
    whole = FENCED[: FENCED.index("\n```\n") + cut]
    found = plain(parse(whole, style, Tools([]), cut=True))
    assert found["content"] == ""
    assert found["calls"] == [("f", {"a": "x", "b": 2}), ("g", {})]
