"""Formats that are found in what a template makes of a call, and tools told in words."""

from __future__ import annotations

import json
import random

import pytest

from ockham.text.chat_template import ChatTemplate
from ockham.text.reply.schemas import Tools, check_tools
from ockham.text.reply.spelled import spell, tell
from ockham.text.reply.style import Style, parse, style_of, with_calls
from tests.helpers.families import LISTED, OBJECT, PYTHON, Family, Talks, chatml, each

SHOWN = "{{ tools | tojson if tools }}"
OTHER = '{{ \'<f>\' }}{"tool": "{{ f.name }}", "args": {{ f.arguments | tojson }}}</f>'
TAGS = (
    """{{ '<call name="' + f.name + '">' }}{% for k, v in f.arguments.items() %}"""
    """{{ '<arg name="' + k + '">' }}{{ v if v is string else v | tojson }}{{ '</arg>' }}"""
    """{% endfor %}{{ '</call>' }}"""
)
TEMPLATES = {
    "JSON": each("{{ '<tool>\n' }}" + OBJECT + "{{ '\n</tool>' }}"),
    "other keys": each(OTHER),
    "a list": chatml("<calls>" + LISTED + "</calls>"),
    "a name before": each("<x>{{ f.name }}<sep>{{ f.arguments | tojson }}</x>"),
    "Python": chatml("<|a|>" + PYTHON + "<|b|>"),
    "tags": each(TAGS),
}
SEED = random.randrange(2**32)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_format_is_found_in_what_the_template_makes_of_a_call(name: str) -> None:
    template = SHOWN + TEMPLATES[name]
    style = with_calls(Style(), ChatTemplate(template, "The template", {}).called())
    assert not style.spelled
    assert style.format is not None
    family = Family("lfm2" if name == "Python" else "found", TEMPLATES[name], never=("</arg>",))
    for number in range(40):
        talks = Talks(SEED + number, family)
        message = talks.message()
        message.pop("reasoning_content", None)
        text = family.answer(message)
        reply = parse(text, style, Tools(talks.tools))
        expected = [call["function"] for call in message.get("tool_calls", ())]
        found = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in reply.tool_calls]
        assert found == expected, f"seed {SEED + number}: {text!r}"
        assert (reply.content or "") == message["content"]


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    template = chatml("")
    style = with_calls(Style(), ChatTemplate(template, "The template", {}).called())
    assert style.spelled
    tools = check_tools([{"function": {"name": "f", "parameters": {"type": "object"}}}])
    call = {"function": {"name": "f", "arguments": {"a": "é"}}}
    said = spell(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "So.", "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": [{"type": "text", "text": "2"}]},
            {"role": "user", "content": "y"},
        ],
        tools,
    )
    assert [message["role"] for message in said] == [
        *("system", "user", "assistant", "user", "user"),
    ]
    assert said[0]["content"].startswith("Be brief.\n\n# Tools")
    assert json.dumps(tools[0], ensure_ascii=False) in said[0]["content"]
    written = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    assert said[2]["content"] == f"So.\n{written}\n{written}"
    assert "tool_calls" not in said[2]
    assert said[3]["content"].count("<tool_response>") == 2
    assert parse(said[2]["content"], style, Tools(tools)).content == "So."
    assert spell([{"role": "user", "content": "x"}], tools)[0]["role"] == "system"


DEEPSEEK = (
    "{% for m in messages %}{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}"
    "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments }}"
    "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)


def test_a_template_that_shows_calls_alone_is_told_of_tools_in_the_models_words() -> None:
    style = style_of(DEEPSEEK)
    assert style.told
    assert style.format is not None
    assert style.format.words is not None
    assert not style_of(DEEPSEEK + "{{ tools }}").told
    function = {"name": "f", "description": "Say {name}.", "parameters": {"type": "object"}}
    tools = check_tools([{"function": function}])
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    said = tell(asked, tools, style.format.words)
    text = said[0]["content"]
    assert text.startswith("Be brief.\n\n## Tools\n")
    assert '### f\nDescription: Say {name}.\n\nParameters: {"type": "object"}\n' in text
    assert "<｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments" in text
    assert said[1:] == asked[1:]
    assert tell(asked, [], style.format.words) == asked
