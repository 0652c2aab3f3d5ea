"""LiteLLM: chats by its providers for OpenAI's API, tools, structured answers, its exceptions."""

from __future__ import annotations

import json

import litellm
from checks import LONG_SYSTEM, MODEL, QUESTION, WEATHER, WEATHER_SCHEMA, is_weather, main, raises
from checks import url as server

litellm.suppress_debug_info = True
ASKED = {
    "model": f"openai/{MODEL}",
    "api_base": f"{server()}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 60,
    "num_retries": 0,
}


def check_a_question_is_answered():
    assert "Paris" in litellm.completion(**ASKED).choices[0].message.content


def check_a_question_is_answered_by_the_provider_for_vllm():
    asked = {**ASKED, "model": f"hosted_vllm/{MODEL}"}
    assert "Paris" in litellm.completion(**asked).choices[0].message.content


def check_a_stream_says_the_same():
    chunks = litellm.completion(**ASKED, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == litellm.completion(**ASKED).choices[0].message.content


def check_cached_tokens_are_counted():
    messages = [{"role": "system", "content": LONG_SYSTEM}, *ASKED["messages"]]
    asked = {**ASKED, "messages": messages}
    litellm.completion(**asked)
    usage = litellm.completion(**asked).usage
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens - 1


def check_tools_are_called():
    answer = litellm.completion(**ASKED, tools=[WEATHER], tool_choice="required")
    [call] = answer.choices[0].message.tool_calls
    is_weather(call.function.arguments)


def check_streamed_calls_are_put_together():
    chunks = list(litellm.completion(**ASKED, tools=[WEATHER], tool_choice="required", stream=True))
    whole = litellm.stream_chunk_builder(chunks)
    is_weather(whole.choices[0].message.tool_calls[0].function.arguments)


def check_a_schema_is_kept():
    schema = {"name": "weather", "schema": WEATHER_SCHEMA, "strict": True}
    answer = litellm.completion(
        **ASKED, response_format={"type": "json_schema", "json_schema": schema}
    )
    is_weather(json.loads(answer.choices[0].message.content))


def check_errors_are_litellms_own():
    raises(
        litellm.NotFoundError, lambda: litellm.completion(**{**ASKED, "model": "openai/gpt-none"})
    )
    raises(litellm.BadRequestError, lambda: litellm.completion(**{**ASKED, "temperature": -1}))
    long = [{"role": "user", "content": "word " * 20_000}]
    raises(
        litellm.ContextWindowExceededError,
        lambda: litellm.completion(**{**ASKED, "messages": long}),
    )


async def check_chats_run_at_once():
    import asyncio

    answers = await asyncio.gather(*(litellm.acompletion(**ASKED) for _ in range(4)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1


if __name__ == "__main__":
    main()
