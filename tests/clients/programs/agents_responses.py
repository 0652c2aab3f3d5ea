"""OpenAI's Agents SDK over its default API: runs, streams, output types, tools, handoffs."""

from __future__ import annotations

from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import MODEL, QUESTION, main, url
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Weather(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def agent(name="Helper", **settings):
    client = AsyncOpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0)
    fixed = {"temperature": 0, "max_tokens": 60, **settings.pop("sampling", {})}
    return Agent(
        name=name,
        model=OpenAIResponsesModel(MODEL, client),
        model_settings=ModelSettings(**fixed),
        **settings,
    )


async def check_a_question_is_answered():
    made = await Runner.run(agent(), QUESTION)
    assert "Paris" in made.final_output


async def check_a_stream_says_the_same():
    run = Runner.run_streamed(agent(), QUESTION)
    kinds = [event.type async for event in run.stream_events()]
    assert "raw_response_event" in kinds
    assert run.final_output == (await Runner.run(agent(), QUESTION)).final_output


async def check_an_output_type_is_kept():
    made = await Runner.run(agent(output_type=Weather), QUESTION)
    assert isinstance(made.final_output, Weather)


async def check_a_required_tool_is_run_and_the_run_goes_on():
    seen = []

    @function_tool
    def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
        """The weather of a city."""
        seen.append(city)
        return f"It is sunny in {city}."

    asked = agent(tools=[get_weather], sampling={"tool_choice": "required"})
    made = await Runner.run(asked, QUESTION)
    assert seen
    assert made.final_output is not None
    assert made.context_wrapper.usage.requests >= 2


async def check_a_chat_is_handed_off():
    geographer = agent("Geographer", instructions="You know capitals.")
    first = agent("Porter", handoffs=[geographer], sampling={"tool_choice": "required"})
    made = await Runner.run(first, QUESTION)
    assert made.last_agent.name == "Geographer"
    assert made.final_output


if __name__ == "__main__":
    main()
