"""anthropic for Python: messages, streams, tools, counts, cached tokens, errors."""

from __future__ import annotations

import json

import anthropic
from checks import LONG_SYSTEM, MODEL, QUESTION, WEATHER, is_weather, main, raises, url

client = anthropic.Anthropic(base_url=url(), api_key="none", max_retries=0, timeout=60)
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 60,
    "extra_body": {"temperature": 0},
}
TOOL = {
    "name": "get_weather",
    "description": WEATHER["function"]["description"],
    "input_schema": WEATHER["function"]["parameters"],
}


def check_a_question_is_answered_and_counted():
    answer = client.messages.create(**ASKED)
    assert "Paris" in answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens > 0


def check_a_stream_says_the_same():
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == client.messages.create(**ASKED).content[0].text


def check_a_prompt_that_was_computed_is_read_from_the_cache():
    system = [{"type": "text", "text": LONG_SYSTEM, "cache_control": {"type": "ephemeral"}}]
    client.messages.create(**ASKED, system=system)
    usage = client.messages.create(**ASKED, system=system).usage
    assert usage.cache_read_input_tokens > 100
    assert usage.input_tokens <= 1


def check_counted_tokens_are_those_that_are_read():
    asked = {"model": MODEL, "messages": ASKED["messages"], "system": LONG_SYSTEM, "tools": [TOOL]}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**{**ASKED, **asked}).usage
    read = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    assert counted == read


def check_a_streamed_call_is_put_together():
    with client.messages.stream(**ASKED, tools=[TOOL], tool_choice={"type": "any"}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert final.stop_reason == "tool_use"
    [call] = [block for block in final.content if block.type == "tool_use"]
    is_weather(call.input)


def check_an_agent_calls_three_tools_and_answers():
    messages = [*ASKED["messages"]]
    for turn in range(3):
        answer = client.messages.create(
            **{**ASKED, "messages": messages},
            tools=[TOOL],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
        [call] = [block for block in answer.content if block.type == "tool_use"]
        result = json.dumps({**is_weather(call.input), "degrees": 20 + turn})
        messages += [
            {"role": "assistant", "content": answer.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": result}],
            },
        ]
    last = client.messages.create(**{**ASKED, "messages": messages}, tools=[TOOL])
    assert last.stop_reason in ("end_turn", "max_tokens", "tool_use")
    assert last.usage.cache_read_input_tokens > last.usage.input_tokens


def check_bad_requests_raise_the_clients_own_exceptions():
    raises(anthropic.NotFoundError, lambda: client.messages.create(**{**ASKED, "model": "claude"}))
    raises(
        anthropic.BadRequestError,
        lambda: client.messages.create(**{**ASKED, "extra_body": {"temperature": -1}}),
    )
    long = [{"role": "user", "content": "word " * 20_000}]
    error = raises(
        anthropic.BadRequestError, lambda: client.messages.create(**{**ASKED, "messages": long})
    )
    assert "prompt is too long" in str(error)


if __name__ == "__main__":
    main()
