"""openai for Python: the Responses API."""

from __future__ import annotations

import json
from typing import Literal

import openai
from checks import (
    LONG_SYSTEM,
    MODEL,
    QUESTION,
    WEATHER_SCHEMA,
    is_weather,
    main,
    raises,
    url,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0, timeout=60)
ASKED = {"model": MODEL, "input": QUESTION, "temperature": 0}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city in the next days.",
    "parameters": WEATHER_SCHEMA,
    "strict": True,
}


class Weather(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def check_a_question_is_answered_as_in_a_chat():
    answer = client.responses.create(**ASKED, max_output_tokens=20)
    messages = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=20
    )
    assert "Paris" in answer.output_text
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens


def check_a_stream_says_the_same():
    whole = client.responses.create(**ASKED, max_output_tokens=20)
    text, numbers = "", []
    for event in client.responses.create(**ASKED, max_output_tokens=20, stream=True):
        numbers.append(event.sequence_number)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == whole.output_text
    assert numbers == list(range(len(numbers)))
    assert event.response.usage.total_tokens == whole.usage.total_tokens


def check_the_helper_reads_a_stream():
    with client.responses.stream(**ASKED, max_output_tokens=40) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "Paris" in final.output_text


def check_a_pydantic_model_is_parsed():
    parsed = client.responses.parse(**ASKED, max_output_tokens=60, text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)
    with client.responses.stream(**ASKED, max_output_tokens=60, text_format=Weather) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Weather)


def check_a_prompt_that_was_computed_counts_as_cached():
    asked = {**ASKED, "instructions": LONG_SYSTEM, "max_output_tokens": 4}
    client.responses.create(**asked)
    usage = client.responses.create(**asked).usage
    assert usage.input_tokens_details.cached_tokens >= usage.input_tokens - 1


def check_a_streamed_call_is_put_together_by_the_helper():
    with client.responses.stream(
        **ASKED, max_output_tokens=60, tools=[TOOL], tool_choice="required"
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    is_weather(final.output[-1].arguments)


def check_an_agent_calls_three_tools_and_answers():
    items = [{"role": "user", "content": QUESTION}]
    for turn in range(3):
        answer = client.responses.create(
            model=MODEL,
            input=items,
            temperature=0,
            max_output_tokens=80,
            tools=[TOOL],
            tool_choice={"type": "function", "name": "get_weather"},
        )
        [call] = [item for item in answer.output if item.type == "function_call"]
        output = json.dumps({**is_weather(call.arguments), "degrees": 20 + turn})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": output}
        items += [*answer.output, result]
    last = client.responses.create(
        model=MODEL, input=items, temperature=0, max_output_tokens=20, tools=[TOOL]
    )
    assert last.output
    usage = last.usage
    assert usage.input_tokens_details.cached_tokens > usage.input_tokens // 2


def check_errors_are_the_clients_own():
    error = raises(
        openai.BadRequestError,
        lambda: client.responses.create(**ASKED, previous_response_id="resp_1"),
    )
    assert error.param == "previous_response_id"
    long = {**ASKED, "input": "word " * 20_000}
    error = raises(openai.BadRequestError, lambda: client.responses.create(**long))
    assert error.code == "context_length_exceeded"
    raises(openai.NotFoundError, lambda: client.responses.retrieve("resp_1"))
    raises(openai.NotFoundError, lambda: client.responses.create(**{**ASKED, "model": "gpt-4o"}))


if __name__ == "__main__":
    main()
