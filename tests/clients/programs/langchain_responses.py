"""LangChain over the Responses API: answers, streams, structured output, tools."""

from __future__ import annotations

from typing import Literal

from checks import MODEL, QUESTION, is_weather, main, url
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

model = ChatOpenAI(
    base_url=f"{url()}/v1",
    api_key="none",
    model=MODEL,
    temperature=0,
    max_tokens=60,
    max_retries=0,
    use_responses_api=True,
)


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


@tool
def get_weather(city: Literal["Paris", "Rome", "Oslo"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city in the next days."""
    return f"It is sunny in {city} for {days} days."


def check_a_question_is_answered():
    assert "Paris" in model.invoke(QUESTION).text


def check_a_stream_says_the_same():
    text = "".join(chunk.text for chunk in model.stream(QUESTION))
    assert text == model.invoke(QUESTION).text


def check_structured_output_by_json_schema():
    assert isinstance(model.with_structured_output(Weather).invoke(QUESTION), Weather)


def check_a_conversation_with_tools_goes_on():
    asked = model.bind_tools([get_weather], tool_choice="required")
    answer = asked.invoke(QUESTION)
    [call] = answer.tool_calls
    is_weather(call["args"])
    history = [HumanMessage(QUESTION), answer, ToolMessage("sunny", tool_call_id=call["id"])]
    assert model.bind_tools([get_weather]).invoke(history).response_metadata["status"]


if __name__ == "__main__":
    main()
