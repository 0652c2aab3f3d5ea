"""LangChain: ChatOpenAI with streams, structured output, tools, and an agent of LangGraph."""

from __future__ import annotations

from typing import Literal

from checks import LONG_SYSTEM, MODEL, QUESTION, is_weather, main, raises, url
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

SETTINGS = {"base_url": f"{url()}/v1", "api_key": "none", "model": MODEL, "temperature": 0}
model = ChatOpenAI(**SETTINGS, max_tokens=60, max_retries=0)


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


@tool
def get_weather(city: Literal["Paris", "Rome", "Oslo"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city in the next days."""
    return f"It is sunny in {city} for {days} days."


def check_a_question_is_answered():
    assert "Paris" in model.invoke(QUESTION).content


def check_a_stream_says_the_same_and_counts():
    chunks = list(model.stream(QUESTION, stream_usage=True))
    assert "".join(chunk.text for chunk in chunks) == model.invoke(QUESTION).content
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 0


def check_cached_tokens_are_shown_as_cache_read():
    asked = [SystemMessage(LONG_SYSTEM), HumanMessage(QUESTION)]
    model.invoke(asked)
    usage = model.invoke(asked).usage_metadata
    assert usage["input_token_details"]["cache_read"] >= usage["input_tokens"] - 1


def check_structured_output_by_json_schema():
    assert isinstance(model.with_structured_output(Weather).invoke(QUESTION), Weather)


def check_structured_output_by_function_calling():
    asked = model.with_structured_output(Weather, method="function_calling")
    assert isinstance(asked.invoke(QUESTION), Weather)


def check_structured_output_by_json_mode():
    asked = model.with_structured_output(Weather, method="json_mode", include_raw=True)
    made = asked.invoke(f"{QUESTION} As JSON with city and sunny.")
    assert made["raw"].content.lstrip().startswith("{")


def check_bound_tools_are_called():
    answer = model.bind_tools([get_weather], tool_choice="required").invoke(QUESTION)
    [call] = answer.tool_calls
    is_weather(call["args"])


def check_a_stream_of_calls_is_put_together():
    whole = None
    for chunk in model.bind_tools([get_weather], tool_choice="any").stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    is_weather(whole.tool_calls[0]["args"])


def check_a_history_with_calls_is_taken_back():
    call = {"name": "get_weather", "args": {"city": "Rome", "days": 2}, "id": "call_1"}
    history = [
        HumanMessage(QUESTION),
        AIMessage("", tool_calls=[call]),
        ToolMessage("sunny", tool_call_id="call_1"),
    ]
    assert model.bind_tools([get_weather]).invoke(history).response_metadata["finish_reason"]


def check_an_agent_runs_the_tools_that_the_model_calls():
    class Calling(ChatOpenAI):
        """Must call a tool until three results are there."""

        def _get_request_payload(self, input_, **settings):
            payload = super()._get_request_payload(input_, **settings)
            results = [m for m in payload["messages"] if m["role"] == "tool"]
            payload["tool_choice"] = "required" if len(results) < 3 else "none"
            return payload

    agent = create_agent(
        Calling(**SETTINGS, max_tokens=60, max_retries=0),
        [get_weather],
    )
    made = agent.invoke({"messages": [HumanMessage(QUESTION)]}, {"recursion_limit": 20})
    results = [m for m in made["messages"] if isinstance(m, ToolMessage)]
    assert len(results) >= 3, made
    assert all(m.content.startswith("It is sunny in") for m in results), results
    assert isinstance(made["messages"][-1], AIMessage)


def check_a_prompt_that_is_too_long_is_langchains_own_error():
    error = raises(ContextOverflowError, lambda: model.invoke("word " * 20_000))
    assert "tokens" in str(error)


async def check_a_batch_runs_at_once():
    answers = await model.abatch([QUESTION] * 4)
    assert len({answer.content for answer in answers}) == 1


def check_text_is_completed():
    made = OpenAI(**SETTINGS, max_tokens=3).invoke("The capital of France is")
    assert "Paris" in made


if __name__ == "__main__":
    main()
