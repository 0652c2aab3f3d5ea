"""LlamaIndex: OpenAILike with chats, streams, structured answers and tools."""

from typing import Literal

from checks import MODEL, QUESTION, is_weather, main, url
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SETTINGS = {
    "model": MODEL,
    "api_base": f"{url()}/v1",
    "api_key": "none",
    "is_chat_model": True,
    "is_function_calling_model": True,
    "context_window": 4096,
    "max_tokens": 60,
    "temperature": 0,
    "max_retries": 0,
}
model = OpenAILike(**SETTINGS)
ASKED = [ChatMessage(role="user", content=QUESTION)]


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def get_weather(city: Literal["Paris", "Rome", "Oslo"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city in the next days."""
    return f"It is sunny in {city} for {days} days."


def check_a_question_is_answered():
    assert "Paris" in model.chat(ASKED).message.content


def check_a_stream_says_the_same():
    text = "".join(part.delta or "" for part in model.stream_chat(ASKED))
    assert text == model.chat(ASKED).message.content


def check_a_text_is_completed_by_the_chat():
    assert model.complete(QUESTION).text


def check_structured_answers_by_default_which_is_a_tool():
    made = model.as_structured_llm(Weather).chat(ASKED)
    assert isinstance(made.raw, Weather)


def check_structured_answers_by_json_schema():
    asked = OpenAILike(**SETTINGS, should_use_structured_outputs=True)
    assert isinstance(asked.as_structured_llm(Weather).chat(ASKED).raw, Weather)


def check_tools_are_called():
    made = model.chat_with_tools(
        [FunctionTool.from_defaults(get_weather)], chat_history=ASKED, tool_required=True
    )
    [call] = model.get_tool_calls_from_response(made)
    is_weather(call.tool_kwargs)


if __name__ == "__main__":
    main()
