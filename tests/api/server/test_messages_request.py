"""What becomes of Anthropic's messages on their way to a chat."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ockham.api.server.errors import HttpError, decode
from ockham.api.server.messages.dialect import error_event
from ockham.api.server.messages.noise import is_countdown, without_countdown, without_header
from ockham.api.server.messages.request import MessagesBody, MessagesChat, VerbatimBody

HEADER = "x-anthropic-billing-header: cc_version=2.1.280.7b4; cc_entrypoint=cli; cch=eb6c6;"
LEFT = "<total_tokens>14931235 tokens left</total_tokens>"


def chat(kind: type[MessagesBody] = MessagesBody, **body: Any) -> MessagesChat:
    return decode(json.dumps({"messages": [], **body}).encode(), kind, "warn", []).chat()


def messages(*given: Any, **body: Any) -> list[dict[str, Any]]:
    made = chat(messages=list(given), **body).messages
    return [msgspec.to_builtins(message) for message in made]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content) if content[1:] else content[0]}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def test_blocks_become_the_messages_that_templates_know() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": [1]}}
    made = messages(
        user(text("a"), text("b")),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "?"},
                text("c"),
                call,
                {**call, "id": "t2"},
            ],
        },
        user(
            {"type": "tool_result", "tool_use_id": "t1", "content": [text("d"), text("e")]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "gone", "is_error": True},
            text("f"),
        ),
        {"role": "system", "content": "g"},
        user("h"),
        system=[text("s"), text("t")],
    )
    function = {"name": "look", "arguments": {"at": [1]}}
    assert made == [
        {"role": "system", "content": "s\nt"},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "c",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": function},
                {"id": "t2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "name": "look", "tool_call_id": "t1", "content": "d\ne"},
        {"role": "tool", "name": "look", "tool_call_id": "t2", "content": "Error: gone"},
        {"role": "user", "content": "f\n<system-reminder>\ng\n</system-reminder>\nh"},
    ]


def test_documents_of_text_stand_in_the_message() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "body"}
    document = {"type": "document", "title": "T", "context": "C", "source": plain}
    parts = {"type": "document", "source": {"type": "content", "content": [text("p"), text("q")]}}
    found = {"type": "search_result", "title": "R", "source": "http://r", "content": [text("r")]}
    [made] = messages(user(document, parts, found))
    assert made["content"] == "T\nC\nbody\np\nq\nR\nhttp://r\nr"


def test_a_last_message_of_the_assistant_is_gone_on_from() -> None:
    begun = chat(messages=[user("a"), {"role": "assistant", "content": "b "}])
    assert [message.role for message in begun.messages] == ["user"]
    assert begun.prefill == "b "
    assert begun.reasoning_effort == "none"
    call = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    called = chat(messages=[user("a"), {"role": "assistant", "content": [call]}])
    assert [message.role for message in called.messages] == ["user", "assistant"]


def test_fields_become_those_of_chat_completions() -> None:
    tool = {"name": "n", "description": "d", "input_schema": {"type": "object"}, "strict": True}
    made = chat(
        messages=[user("a")],
        tools=[tool],
        tool_choice={"type": "tool", "name": "n", "disable_parallel_tool_use": True},
        stop_sequences=["x"],
        max_tokens=5,
        top_k=3,
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "max"},
        service_tier="standard_only",
    )
    function = {"name": "n", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert made.tools == [{"type": "function", "function": function}]
    assert made.tool_choice == {"type": "function", "function": {"name": "n"}}
    assert made.parallel_tool_calls is False
    assert (made.stop, made.max_tokens, made.top_k, made.label) == (["x"], 5, 3, "u")
    assert made.chat_template_kwargs == {"enable_thinking": True, "reasoning_effort": "high"}
    assert chat(messages=[user("a")], thinking={"type": "disabled"}).reasoning_effort == "none"


def test_marks_say_for_how_long() -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    minutes = {"type": "ephemeral"}
    tool = {"name": "n", "input_schema": {}, "cache_control": minutes}
    made = chat(messages=[user("a")], tools=[tool], system=[text("s", cache_control=hour)])
    assert (made.stays_s, made.marks_messages, made.cache_hint) == (3600, False, None)
    made = chat(messages=[user(text("a", cache_control=minutes), text("b"))])
    assert (made.stays_s, made.marks_messages, made.cache_hint) == (0, True, "keep")
    assert chat(messages=[user("a")], cache_control=minutes).marks_messages


def test_what_changes_with_each_prompt_is_left_out() -> None:
    given: dict[str, Any] = {
        "system": [text(HEADER), text("You help.")],
        "messages": [
            user(text(f"<system-reminder>\n{LEFT}\n</system-reminder>"), text("a")),
            {"role": "system", "content": LEFT},
        ],
    }
    assert messages(*given["messages"], system=given["system"]) == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "a"},
    ]
    verbatim = chat(VerbatimBody, **given).messages
    assert verbatim[0].content == f"{HEADER}\nYou help."
    assert str(verbatim[1].content).count(LEFT) == 2


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (HEADER, ""),
        (f"{HEADER}\nYou help; a=b;", "You help; a=b;"),
        (f"{HEADER}You help.", "You help."),
        ("x-anthropic-billing-header: cc_version=1; cch=0", ""),
        ("You help. " + HEADER, "You help. " + HEADER),
    ],
)
def test_the_header_goes_and_what_follows_stays(given: str, kept: str) -> None:
    assert without_header(given) == kept


def test_countdowns_are_told_from_texts_about_them() -> None:
    usage = "Token usage: 35000/200000; 165000 remaining"
    for said in (LEFT, f"\n{LEFT}\n", usage, f"<system_warning>{usage}</system_warning>"):
        assert is_countdown(said)
        assert is_countdown(f"<system-reminder>\n{said}\n</system-reminder>")
    assert not is_countdown(f"What does {LEFT} mean?")
    assert not is_countdown(LEFT + " " * 400)
    assert without_countdown(f"Go on. {LEFT}") == "Go on. "


def test_an_error_in_a_stream_is_an_event() -> None:
    name, data = error_event(HttpError(503, "Gone."), "7").decode().strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Gone."},
        "request_id": "7",
    }
