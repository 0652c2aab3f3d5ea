"""anthropic for Python: messages, streams, parsing, tools, counting, errors, tool runners."""

from __future__ import annotations

import asyncio
from typing import Literal

import anthropic
from anthropic import beta_tool
from checks import LONG_SYSTEM, MODEL, QUESTION, WEATHER_SCHEMA, is_weather, main, raises, url
from pydantic import BaseModel

client = anthropic.Anthropic(base_url=url(), api_key="none", max_retries=0, timeout=60)
USER = {"role": "user", "content": QUESTION}
ASKED = {"model": MODEL, "messages": [USER], "extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city in the next days.",
    "input_schema": WEATHER_SCHEMA,
}


class Weather(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def whole_prompt(usage):
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def check_a_message_is_answered_and_counted():
    answer = client.messages.create(**ASKED, max_tokens=20)
    assert "Paris" in answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens <= 20
    assert answer._request_id
    counted = client.messages.count_tokens(model=MODEL, messages=[USER])
    assert counted.input_tokens == whole_prompt(answer.usage)


def check_a_stream_says_the_same():
    answer = client.messages.create(**ASKED, max_tokens=20)
    with client.messages.stream(**ASKED, max_tokens=20) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == answer.content[0].text == final.content[0].text
    assert final.usage.output_tokens == answer.usage.output_tokens
    events = [event.type for event in client.messages.create(**ASKED, max_tokens=4, stream=True)]
    assert (events[0], events[-1]) == ("message_start", "message_stop")


def check_an_async_client_is_served():
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=url(), auth_token="none") as other:
            return await other.messages.create(**ASKED, max_tokens=20)

    answer = asyncio.run(ask())
    assert "Paris" in answer.content[0].text


def check_stop_sequences_end_the_answer():
    answer = client.messages.create(**ASKED, max_tokens=30, stop_sequences=["Paris"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in answer.content[0].text


def check_a_pydantic_model_is_parsed():
    message = client.messages.parse(**ASKED, max_tokens=60, output_format=Weather)
    assert isinstance(message.parsed_output, Weather)
    with client.messages.stream(**ASKED, max_tokens=60, output_format=Weather) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Weather)


def check_three_calls_of_tools_and_an_answer():
    """The loop of an agent, whole and streamed by turns."""
    messages = [{"role": "user", "content": "What is the weather in Paris, Rome and Oslo?"}]
    asked = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER], "system": "Use the tools."}
    for turn in range(3):
        given = {**asked, "messages": messages, "tool_choice": {"type": "any"}}
        if turn % 2:
            with client.messages.stream(**given) as stream:
                answer = stream.get_final_message()
        else:
            answer = client.messages.create(**given)
        assert answer.stop_reason == "tool_use", answer
        calls = [block for block in answer.content if block.type == "tool_use"]
        results = [
            {
                "type": "tool_result",
                "tool_use_id": call.id,
                "content": [{"type": "text", "text": f"Rain in {is_weather(call.input)['city']}."}],
            }
            for call in calls
        ]
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": results},
        ]
    last = client.messages.create(**asked, messages=messages, tool_choice={"type": "none"})
    assert last.content[0].text
    counted = client.messages.count_tokens(
        model=MODEL,
        messages=messages,
        tools=[WEATHER],
        system="Use the tools.",
        tool_choice={"type": "none"},
    )
    assert counted.input_tokens == whole_prompt(last.usage)


def check_a_tool_runner_runs_tools():
    called = []

    @beta_tool
    def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
        """The weather of a city.

        Args:
            city: The city.
        """
        called.append(city)
        return f"Rain in {city}."

    for streams in (False, True):
        runner = client.beta.messages.tool_runner(
            model=MODEL,
            max_tokens=60,
            tools=[get_weather],
            messages=[USER],
            max_iterations=2,
            tool_choice={"type": "tool", "name": "get_weather"},
            stream=streams,
        )
        answers = [answer.get_final_message() if streams else answer for answer in runner]
        assert [answer.stop_reason for answer in answers] == ["tool_use", "tool_use"]
    assert len(called) >= 4


def check_what_is_marked_is_read_from_the_cache():
    mark = {"type": "ephemeral", "ttl": "1h"}
    system = [{"type": "text", "text": LONG_SYSTEM + "Anthropic.", "cache_control": mark}]
    asked = {**ASKED, "system": system, "max_tokens": 4}
    first = client.messages.create(**asked).usage
    assert first.cache_creation_input_tokens + first.cache_read_input_tokens > 200
    second = client.messages.create(**asked).usage
    assert second.cache_creation_input_tokens == 0
    assert second.cache_read_input_tokens >= whole_prompt(second) - 1
    pins = client.post("/v1/cache", body={}, cast_to=object)["pins"]
    assert [pin["name"].startswith("cache_control-") for pin in pins] == [True]
    for pin in pins:  # an hour is more than the tests wait for an idle server
        client.post("/v1/cache/unpin", body={"name": pin["name"]}, cast_to=object)


def check_errors_have_the_clients_own_types():
    asked = {**ASKED, "max_tokens": 4}
    create = client.messages.create
    error = raises(anthropic.NotFoundError, lambda: create(**{**asked, "model": "nope"}))
    assert error.type == "not_found_error"
    assert error.request_id
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    content = [{"role": "user", "content": [image]}]
    error = raises(anthropic.BadRequestError, lambda: create(**{**asked, "messages": content}))
    assert "reads text only" in str(error)
    long = [{"role": "user", "content": "a b c " * 9000}]
    error = raises(anthropic.BadRequestError, lambda: create(**{**asked, "messages": long}))
    assert "prompt is too long: " in str(error)


if __name__ == "__main__":
    main()
