"""Items of the Responses API as messages, and texts of custom tools, without a server."""

from __future__ import annotations

import json

import msgspec
import pytest

from ockham.api.server.responses.request import ResponseRequest
from ockham.api.server.responses.tools import InputReader
from tests.api.server.test_responses import TEXT


def test_items_are_messages() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": 'x"'},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {
            "type": "custom_tool_call_output",
            "call_id": "2",
            "output": [{"type": "input_text", "text": "two"}],
        },
        {"type": "function_call", "call_id": "3", "name": "h", "namespace": "m", "arguments": ""},
        {"type": "web_search_call", "id": "ws_1"},
        {"role": "user", "content": "so?"},
    ]
    body = msgspec.convert({"input": items, "instructions": "Be brief."}, ResponseRequest)
    messages = [msgspec.to_builtins(message) for message in body.chat().messages]
    assert messages == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                {
                    "id": "2",
                    "type": "function",
                    "function": {"name": "g", "arguments": '{"input":"x\\""}'},
                },
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "two", "tool_call_id": "2", "name": "g"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "3", "type": "function", "function": {"name": "m__h", "arguments": "{}"}}
            ],
        },
        {"role": "user", "content": "so?"},
    ]
    assert body.asked.skipped == ["input[9] (web_search_call)"]


@pytest.mark.parametrize(
    "arguments", [json.dumps({"input": TEXT}), json.dumps({"input": "\ud83d"})]
)
@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_text_is_read_out_of_arguments_while_they_come(arguments: str, step: int) -> None:
    reader = InputReader()
    pieces = [reader.feed(arguments[at : at + step]) for at in range(0, len(arguments), step)]
    text = json.loads(arguments)["input"].encode(errors="replace").decode()
    assert "".join([*pieces, reader.finish()]) == reader.text == text
    assert len([piece for piece in pieces if piece]) > 1 or len(text) < 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"patch": "x"}', "x"), ('{"a": "x", "b": "y"}', None), ("no JSON", None), ("[1]", None)],
)
def test_other_arguments_of_a_custom_tool_are_its_text(arguments: str, text: str | None) -> None:
    reader = InputReader()
    assert reader.feed(arguments) == ""
    assert reader.finish() == reader.text == (arguments if text is None else text)
