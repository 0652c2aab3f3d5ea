"""anthropic for Python: counts of tokens, streamed calls, prompts that are too long."""

from __future__ import annotations

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
