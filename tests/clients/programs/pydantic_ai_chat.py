"""Pydantic AI: agents with text, structured answers in each mode, tools and streams."""

from __future__ import annotations

from typing import Literal

from checks import MODEL, QUESTION, main, raises, url
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{url()}/v1", api_key="none")
model = OpenAIChatModel(MODEL, provider=provider)
SETTINGS = {"temperature": 0, "max_tokens": 60}


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


async def check_a_question_is_answered():
    made = await Agent(model, model_settings=SETTINGS).run(QUESTION)
    assert "Paris" in made.output
    assert made.usage.input_tokens > 0


async def check_a_stream_says_the_same():
    agent = Agent(model, model_settings=SETTINGS)
    async with agent.run_stream(QUESTION) as stream:
        text = "".join([part async for part in stream.stream_text(delta=True)])
    assert text == (await agent.run(QUESTION)).output


async def check_the_default_of_structured_answers_which_is_a_tool():
    made = await Agent(model, output_type=Weather, model_settings=SETTINGS).run(QUESTION)
    assert isinstance(made.output, Weather)


async def check_structured_answers_by_a_named_tool():
    asked = Agent(model, output_type=ToolOutput(Weather, name="weather"), model_settings=SETTINGS)
    assert isinstance((await asked.run(QUESTION)).output, Weather)


async def check_structured_answers_by_schema():
    asked = Agent(model, output_type=NativeOutput(Weather), model_settings=SETTINGS)
    assert isinstance((await asked.run(QUESTION)).output, Weather)


async def check_a_tool_is_run_before_the_answer():
    asked = Agent(model, output_type=Weather, model_settings=SETTINGS)
    seen = []

    @asked.tool_plain
    def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
        """The weather of a city."""
        seen.append(city)
        return f"It is sunny in {city}."

    # Either tool may be taken by the small model; the other one's schema is kept all the same.
    made = await asked.run(QUESTION)
    assert isinstance(made.output, Weather)
    assert set(seen) <= {"Paris", "Rome", "Oslo"}


def check_errors_are_its_own():
    agent = Agent(OpenAIChatModel("gpt-none", provider=provider))
    error = raises(ModelHTTPError, lambda: agent.run_sync(QUESTION))
    assert error.status_code == 404


if __name__ == "__main__":
    main()
