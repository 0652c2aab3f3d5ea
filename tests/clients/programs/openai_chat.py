"""openai for Python: chat completions, text completions, models, errors."""

from __future__ import annotations

import json
from typing import Literal

import openai
from checks import LONG_SYSTEM, MODEL, QUESTION, WEATHER, is_weather, main, raises, url
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0, timeout=60)
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


class Weather(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def check_a_chat_is_answered_and_counted():
    answer = client.chat.completions.create(**ASKED, max_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def check_a_stream_says_the_same_and_ends_with_usage():
    whole = client.chat.completions.create(**ASKED, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            **ASKED, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def check_a_prompt_that_was_computed_counts_as_cached():
    messages = [{"role": "system", "content": LONG_SYSTEM}, *ASKED["messages"]]
    asked = {**ASKED, "messages": messages, "max_tokens": 4}
    client.chat.completions.create(**asked)
    usage = client.chat.completions.create(**asked).usage
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens - 1


def check_a_pydantic_model_is_parsed():
    parsed = client.chat.completions.parse(**ASKED, max_tokens=60, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)


def check_a_stream_is_parsed():
    with client.chat.completions.stream(**ASKED, max_tokens=60, response_format=Weather) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)


def check_a_required_tool_is_called():
    answer = client.chat.completions.create(
        **ASKED, max_tokens=60, tools=[WEATHER], tool_choice="required"
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    is_weather(call.function.arguments)


def check_a_streamed_call_is_put_together_by_the_helper():
    with client.chat.completions.stream(
        **ASKED, max_tokens=60, tools=[WEATHER], tool_choice="required"
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    is_weather(final.choices[0].message.tool_calls[0].function.arguments)


def check_an_agent_calls_three_tools_and_answers():
    messages = [*ASKED["messages"]]
    for turn in range(3):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0,
            max_tokens=80,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        [call] = answer.choices[0].message.tool_calls
        given = is_weather(call.function.arguments)
        messages += [
            answer.choices[0].message,
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": json.dumps({**given, "degrees": 20 + turn}),
            },
        ]
    last = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=20, tools=[WEATHER]
    )
    assert last.choices[0].finish_reason in ("stop", "length", "tool_calls")
    usage = last.usage
    assert usage.prompt_tokens_details.cached_tokens > usage.prompt_tokens // 2


def check_log_probabilities_are_told():
    answer = client.chat.completions.create(**ASKED, max_tokens=3, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in tokens] == [2, 2, 2]


def check_text_is_completed():
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=3, temperature=0
    )
    assert "Paris" in answer.choices[0].text


def check_bad_requests_raise_the_clients_own_exceptions():
    error = raises(
        openai.NotFoundError,
        lambda: client.chat.completions.create(**{**ASKED, "model": "gpt-4o"}),
    )
    assert "There is no model 'gpt-4o' here" in str(error)
    error = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**{**ASKED, "temperature": -1}),
    )
    assert error.param == "temperature"
    long = [{"role": "user", "content": "word " * 20_000}]
    error = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**{**ASKED, "messages": long}),
    )
    assert error.code == "context_length_exceeded"
    assert "tokens" in str(error)


def check_models_are_listed_and_looked_up():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


async def check_eight_chats_at_once_say_what_one_says():
    import asyncio

    many = openai.AsyncOpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0, timeout=60)
    alone = client.chat.completions.create(**ASKED, max_tokens=12)
    answers = await asyncio.gather(
        *(many.chat.completions.create(**ASKED, max_tokens=12) for _ in range(8))
    )
    said = {answer.choices[0].message.content for answer in answers}
    assert said == {alone.choices[0].message.content}


if __name__ == "__main__":
    main()
