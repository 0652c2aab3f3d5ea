"""Whatever the style of a template, what people said stands in the prompt, as transformers puts it
there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ockham.core.errors import InvalidRequest
from ockham.text.tokenizer import Tokenizer
from tests.helpers.tiny_tokenizers import byte_level_bpe, save

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + \
'<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TRIMMED = """{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"""
PRINTED = """{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"""
LLAMA_3 = """{{- bos_token }}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if m.content is mapping %}{{- m.content | tojson }}
        {%- else %}{{- m.content }}{%- endif %}{{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' }}
        {%- if loop.first and system is defined %}{{- system + '\\n\\n' }}{%- endif %}
        {{- m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be strings of length 9!') }}
            {%- endif %}
            {{- call.function | tojson }}{{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + '}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user, assistant and tool roles are supported') }}
    {%- endif %}
{%- endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}\
{% else %}{% set role = m['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
QWEN = """{%- for m in messages %}
    {%- if m.role in ('user', 'system') or (m.role == 'assistant' and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>' + m.role }}
        {%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}{{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
ONLY_DEFINED = """{% for m in messages %}<{{ m.role }}>{% if m.content is defined %}\
{{ m.content }}{% else %}(none){% endif %}\
{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"""
CALLS_IF_NONE = """{% for m in messages %}<{{ m.role }}>\
{% if m.content is none %}{% for c in m.tool_calls %}calls {{ c.function.name }}{% endfor %}\
{% else %}{{ m.content }}{% endif %}{% endfor %}"""
PARTS = """{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}\
{% endfor %}{% endfor %}"""
EITHER = """{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}\
{% else %}{% for part in m.content %}{{ part['text'] | trim }}{% endfor %}{% endif %}{% endfor %}"""
FIRST_PART = """{% for m in messages %}<{{ m.role }}>{{ m.content[0]['text'] }}{% endfor %}"""
MIXED = """{% if messages[0].role == 'system' %}<<{{ messages[0].content | trim }}>>{% endif %}\
{% for m in messages if m.role != 'system' %}<{{ m.role }}>\
{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"""

OWN_CALLS = {"Llama 3": LLAMA_3, "Mistral": MISTRAL, "Qwen": QWEN, "only defined": ONLY_DEFINED}
PLAIN = {"ChatML": CHATML, "trimmed": TRIMMED, "printed": PRINTED, "Gemma": GEMMA}
OF_PARTS = {"parts": PARTS, "first part": FIRST_PART, "mixed": MIXED}
STYLES = {**OWN_CALLS, **PLAIN, **OF_PARTS, "either": EITHER, "calls if none": CALLS_IF_NONE}

CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
}
ASKED = {"role": "user", "content": "Rain in Paris?"}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "18 degrees"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    backend = byte_level_bpe()
    root = tmp_path_factory.mktemp("styles")
    return {name: save(backend, root / name, chat_template=t) for name, t in STYLES.items()}


def parsed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with arguments as objects, which is how transformers wants them."""
    arguments = {"city": "Paris"}
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    return [{**m, "tool_calls": [call]} if "tool_calls" in m else m for m in messages]


def expected(directory: Path, messages: list[dict[str, Any]]) -> str:
    oracle = AutoTokenizer.from_pretrained(directory)
    prompt: str = oracle.apply_chat_template(
        parsed(messages), tokenize=False, add_generation_prompt=True
    )
    return prompt


@pytest.mark.parametrize("missing", ["null", "absent"])
@pytest.mark.parametrize("name", [*OWN_CALLS, *PLAIN])
def test_null_content_beside_tool_calls_is_what_transformers_makes_of_it_or_empty(
    tokenizers: dict[str, Path], name: str, missing: str
) -> None:
    null = {} if missing == "absent" else {"content": None}
    talk = [ASKED, {"role": "assistant", **null, "tool_calls": [CALL]}, RESULT]
    oracles = [ASKED, {**talk[1], "content": None if name in OWN_CALLS else ""}, RESULT]
    prompt = Tokenizer(tokenizers[name]).apply_chat_template(talk)
    assert prompt == expected(tokenizers[name], oracles)
    assert "None" not in prompt


def test_a_template_that_shows_calls_beside_null_content_alone_gets_null(
    tokenizers: dict[str, Path],
) -> None:
    talk = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
    prompt = Tokenizer(tokenizers["calls if none"]).apply_chat_template(talk)
    assert "<assistant>calls weather" in prompt


@pytest.mark.parametrize("name", STYLES)
def test_a_call_without_its_result_yet_can_be_rendered(
    tokenizers: dict[str, Path], name: str
) -> None:
    talk = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    prompt = Tokenizer(tokenizers[name]).apply_chat_template(talk)
    assert "Rain in Paris?" in prompt
    assert "None" not in prompt


@pytest.mark.parametrize("form", ["text", "one part", "two parts"])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("name", STYLES)
def test_no_text_is_lost_whatever_its_role_and_form(
    tokenizers: dict[str, Path], name: str, role: str, form: str
) -> None:
    marks = ["one marked text", "and another"] if form == "two parts" else ["one marked text"]
    content: Any = [{"type": "text", "text": mark} for mark in marks]
    if form == "text":
        (content,) = marks
    said: dict[str, Any] = {"role": role, "content": content}
    talk = {
        "system": [said, ASKED],
        "user": [said],
        "assistant": [ASKED, said, ASKED],
        "tool": [
            ASKED,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {**RESULT, **said},
        ],
    }[role]
    tokenizer = Tokenizer(tokenizers[name])
    if name == "Gemma" and role == "system":
        with pytest.raises(InvalidRequest, match="refuses these messages: System role not"):
            tokenizer.apply_chat_template(talk)
        return
    prompt = tokenizer.apply_chat_template(talk)
    for mark in marks:
        assert mark in prompt
    assert "'type'" not in prompt


@pytest.mark.parametrize("name", STYLES)
def test_plain_talk_is_what_transformers_makes_of_it(
    tokenizers: dict[str, Path], name: str
) -> None:
    talk = [ASKED, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}]
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in talk]
    prompt = Tokenizer(tokenizers[name]).apply_chat_template(talk)
    assert prompt == expected(tokenizers[name], as_parts if name in OF_PARTS else talk)


@pytest.mark.parametrize("role", ["system", "later system", "assistant", "tool", "critic"])
def test_a_role_that_a_checkpoint_s_template_leaves_out_is_refused(
    tmp_path: Path, role: str
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' or (loop.first and m.role == 'system' and "
        "role != 'system') %}{{ m.content }}{% endif %}{% endfor %}"
    )
    template = template.replace("role != 'system'", "true" if role != "system" else "false")
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=template))
    said = {"role": role.removeprefix("later "), "content": "something"}
    talk = [said, ASKED] if role == "system" else [ASKED, said, ASKED]
    with pytest.raises(InvalidRequest, match=f"does not show the content of {role} messages"):
        tokenizer.apply_chat_template(talk)
    assert tokenizer.apply_chat_template([ASKED]) == "Rain in Paris?"


def test_a_template_that_leaves_out_what_a_user_says_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.text }}{% endfor %}"
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=template))
    with pytest.raises(InvalidRequest, match="does not show the content of user messages"):
        tokenizer.apply_chat_template([ASKED])
    fault, notes = tokenizer.check_chat_template()
    assert fault is None
    assert any("content of user messages" in note for note in notes)


def test_a_broken_template_for_tools_is_told_beside_a_sound_one(tmp_path: Path) -> None:
    entries = [
        {"name": "default", "template": CHATML},
        {"name": "tool_use", "template": "{% for %}"},
    ]
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=entries))
    fault, notes = tokenizer.check_chat_template()
    assert fault is None
    assert any("With tools: The checkpoint's chat template is not valid" in note for note in notes)


def test_tools_that_only_a_template_with_tools_answers_are_shown(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role != 'tool' or tools %}{{ m.content or '' }}{% endif %}"
        "{% endfor %}"
    )
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path, chat_template=template))
    talk = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert "18 degrees" in tokenizer.apply_chat_template(talk, tools=tools)
    with pytest.raises(InvalidRequest, match="content of tool messages"):
        tokenizer.apply_chat_template(talk)
