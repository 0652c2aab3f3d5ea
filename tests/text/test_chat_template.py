"""Chat templates render as transformers renders them, and refuse what they cannot render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ockham.core.errors import InvalidRequest, ModelError
from ockham.text.chat_template import ChatTemplate
from ockham.text.tokenizer import Tokenizer
from tests.helpers.tiny_tokenizers import byte_level_bpe, save

LAB = Path(__file__).parents[2] / "ockham" / "model" / "lab"
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "What is 2+2? 漢字"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SHOWN = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = {
    "whitespace control": """{%- for m in messages %}
    {%- if m['role'] == 'system' %}
        {%- continue %}
    {%- endif %}
{{ bos_token }}[{{ m['role'] | upper }}] {{ m['content'] | trim }}
{%- if loop.last %}
  {%- break %}
{%- endif %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[ASSISTANT]{% endif %}""",
    "to JSON": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ tools | tojson }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ pad_token }}{{ tools is none }}",
    "own variable": "{{ messages[0].content }}{% if enable_thinking %}think{% endif %}",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level_bpe(), tmp_path_factory.mktemp("tokenizer"))


def ask(tokenizer: Tokenizer, template: str, **kwargs: Any) -> str:
    return tokenizer.apply_chat_template(TALK, chat_template=template, **kwargs)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(
    directory: Path, name: str, tools: list[dict[str, Any]] | None
) -> None:
    oracle = AutoTokenizer.from_pretrained(directory)
    expected = oracle.apply_chat_template(
        TALK,
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=True,
    )
    tokenizer = Tokenizer(directory)
    assert ask(tokenizer, TEMPLATES[name], tools=tools, enable_thinking=True) == expected


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_lab_model_has_the_template_that_transformers_finds(
    add_generation_prompt: bool, tools: list[dict[str, Any]] | None
) -> None:
    expected = AutoTokenizer.from_pretrained(LAB).apply_chat_template(
        TALK, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    text = Tokenizer(LAB).apply_chat_template(
        TALK, tools=tools, add_generation_prompt=add_generation_prompt
    )
    assert text == expected


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path, chat_template="from the configuration" + SHOWN)
    assert Tokenizer(tmp_path).apply_chat_template(TALK).startswith("from the configuration")
    (tmp_path / "chat_template.jinja").write_text("from the file" + SHOWN)
    assert Tokenizer(tmp_path).apply_chat_template(TALK).startswith("from the file")


def test_of_several_templates_tools_choose_their_own(tmp_path: Path) -> None:
    entries = [
        {"name": "default", "template": "D" + SHOWN},
        {"name": "tool_use", "template": "T" + SHOWN},
    ]
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=entries))
    assert tokenizer.apply_chat_template(TALK)[0] == "D"
    assert tokenizer.apply_chat_template(TALK, tools=TOOLS)[0] == "T"
    assert tokenizer.apply_chat_template(TALK, chat_template="tool_use")[0] == "T"


def test_several_templates_without_a_default_must_be_chosen_from(tmp_path: Path) -> None:
    entries = [{"name": "rag", "template": "R"}]
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=entries))
    with pytest.raises(InvalidRequest, match="choose one with chat_template: rag"):
        tokenizer.apply_chat_template(TALK)


def test_a_template_entry_without_a_name_is_reported(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path, chat_template=[{"template": "x"}])
    with pytest.raises(ModelError, match="no name"):
        Tokenizer(tmp_path)


def test_a_model_without_template_refuses_to_chat(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no chat template"):
        Tokenizer(directory).apply_chat_template(TALK)


def test_text_parts_are_joined(directory: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = Tokenizer(directory).apply_chat_template(
        [{"role": "user", "content": parts}], chat_template="{{ messages[0].content }}"
    )
    assert text == "one\ntwo"


def test_arguments_of_tool_calls_reach_the_template_as_objects(directory: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    text = Tokenizer(directory).apply_chat_template(
        [{"role": "assistant", "content": None, "tool_calls": [call]}],
        chat_template="{{ messages[0].tool_calls[0].function.arguments.a }}",
    )
    assert text == "1"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "must not be empty"),
        ("hello", "must be a list"),
        ([3], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 3}], "must be a string or a list of text parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "of type 'image_url'; only text parts",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
            "arguments are not JSON",
        ),
        ([{"role": "assistant", "tool_calls": ["x"]}], "tool call that is not an object"),
    ],
)
def test_malformed_messages_are_refused(directory: Path, messages: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        Tokenizer(directory).apply_chat_template(messages, chat_template="x")


def test_what_a_template_raises_is_told(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate"):
        ask(Tokenizer(directory), "{{ raise_exception('roles must alternate') }}")


def test_a_template_that_fails_is_told(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"chat template failed \(line 1: TypeError"):
        ask(Tokenizer(directory), "{{ messages[0].content + 1 }}")


def test_a_template_that_is_no_jinja_is_told_with_its_line(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"not valid Jinja \(line 2"):
        ask(Tokenizer(directory), "\n{% for %}")


def test_a_template_cannot_leave_its_sandbox(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"failed \(line 1: SecurityError"):
        ask(Tokenizer(directory), "{{ ''.__class__.__mro__[1].__subclasses__() }}")


def test_a_template_cannot_change_the_messages(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"failed \(line 1: SecurityError"):
        ask(Tokenizer(directory), "{{ messages.append(1) }}")


ONE_TEXT = """{%- for m in messages %}{% if m.tool_calls %}
{%- if m.content and m.thinking %}{{ raise_exception('content or thinking, not both') }}{% endif %}
{{- '[' + (m.thinking or m.content or '') + ']' + m.tool_calls[0].function.name }}
{%- else %}{{ m.content }}{% endif %}{% endfor %}"""
CALLED = {"type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"content": "I look.", "thinking": "Hm."}, "[Hm.\n\nI look.]look"),
        ({"content": "I look."}, "[I look.]look"),
        ({"content": None, "thinking": "Hm."}, "[Hm.]look"),
    ],
)
def test_a_template_that_shows_one_text_beside_a_call_is_given_one(
    said: dict[str, Any], shown: str
) -> None:
    template = ChatTemplate(ONE_TEXT, "The template", {})
    called = {"role": "assistant", **said, "tool_calls": [CALLED]}
    assert template.render([{"role": "user", "content": "Look! "}, called]) == f"Look! {shown}"


def test_a_template_that_shows_both_beside_a_call_is_given_both() -> None:
    source = "{% for m in messages %}{{ m.thinking or '' }}|{{ m.content }}{% endfor %}"
    called = {"role": "assistant", "content": "b", "thinking": "a", "tool_calls": [CALLED]}
    asked = {"role": "user", "content": "x"}
    assert ChatTemplate(source, "The template", {}).render([asked, called]) == "|xa|b"


WITHIN = """{%- for m in messages %}<|turn>{{ m.role }}
{%- for call in m.tool_calls or [] %}<|tool_call>call:{{ call.function.name }}<tool_call|>
{%- endfor %}
{%- for each in m.tool_responses or [] %}<|tool_response>{{ each.name }}={{ each.response }}
{%- endfor %}{{ m.content or '' }}{{ '<turn|>' if m.content or not m.tool_responses }}
{%- endfor %}"""


def _calling(*names: str) -> dict[str, Any]:
    calls = [
        {"id": f"id{i}", "type": "function", "function": {"name": name, "arguments": {}}}
        for i, name in enumerate(names)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_results_stand_within_the_turn_that_called_where_the_template_wants_them_there() -> None:
    """As in Gemma 4's templates, which show no message of the role tool."""
    template = ChatTemplate(WITHIN, "The test's template", {})
    said = template.render(
        [
            {"role": "user", "content": "?"},
            _calling("f", "g"),
            {"role": "tool", "tool_call_id": "id1", "content": '{"a": 1}'},
            {"role": "tool", "tool_call_id": "id0", "content": "no"},
            {"role": "assistant", "content": "So."},
            {"role": "user", "content": "!"},
            _calling("f"),
            {"role": "tool", "content": [{"type": "text", "text": "[2]"}]},
        ]
    )
    assert said == (
        "<|turn>user?<turn|>"
        "<|turn>assistant<|tool_call>call:f<tool_call|><|tool_call>call:g<tool_call|>"
        "<|tool_response>g={'a': 1}<|tool_response>f=noSo.<turn|>"
        "<|turn>user!<turn|>"
        "<|turn>assistant<|tool_call>call:f<tool_call|><|tool_response>f=[2]"
    )
    assert template.report().notes == ()
