"""ollama for Python: chats, prompts, streams, tools, schemas, models, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import ollama
from checks import LONG_SYSTEM, MODEL, QUESTION, WEATHER, is_weather, main, raises, url
from pydantic import BaseModel

client = ollama.Client(url())
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
GREEDY = {"temperature": 0, "num_predict": 20}


class Person(BaseModel, extra="forbid"):
    old: bool
    friends: int


class Requiring(httpx.HTTPTransport):
    """Adds a field that Ollama does not have: one call must be made."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = {
            **json.loads(request.read()),
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        changed = httpx.Request(request.method, request.url, json=body)
        return super().handle_request(changed)


def get_time(city: str) -> str:
    """The time in a city.

    Args:
        city: The name of the city.
    """
    return f"noon in {city}"


def check_a_chat_is_answered_and_counted():
    answer = client.chat(**ASKED, options=GREEDY)
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert 0 < answer.eval_count <= 20
    assert answer.prompt_eval_count > 10
    assert answer.total_duration >= answer.eval_duration > 0


def check_a_stream_adds_up_to_the_whole_answer():
    whole = client.chat(**ASKED, options=GREEDY)
    parts = list(client.chat(**ASKED, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts].count(True) == 1
    assert parts[-1].eval_count == whole.eval_count


async def check_the_asynchronous_client_streams():
    asynchronous = ollama.AsyncClient(url())
    stream = await asynchronous.chat(**ASKED, options=GREEDY, stream=True)
    text = "".join([part.message.content async for part in stream])
    assert text == client.chat(**ASKED, options=GREEDY).message.content


def check_a_prompt_is_answered_and_goes_on_by_its_context():
    first = client.generate(MODEL, QUESTION, system="Be brief.", options=GREEDY)
    assert first.response
    more = client.generate(MODEL, "And of Italy?", context=first.context, options=GREEDY)
    assert more.prompt_eval_count > len(first.context)
    raw = client.generate(MODEL, "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in raw.response
    parts = list(client.generate(MODEL, QUESTION, stream=True, options=GREEDY))
    assert parts[-1].done
    assert "".join(part.response for part in parts)


def check_a_schema_is_followed():
    options = {"temperature": 0, "num_predict": 60}
    answer = client.chat(**ASKED, format=Person.model_json_schema(), options=options)
    Person.model_validate_json(answer.message.content)


def check_python_functions_are_tools():
    answer = client.chat(**ASKED, tools=[get_time, WEATHER], options=GREEDY)
    for call in answer.message.tool_calls or ():
        assert call.function.name in ("get_time", "get_weather")


def check_an_agent_calls_three_tools_and_answers():
    requiring = ollama.Client(url(), transport=Requiring())
    messages: list = [{"role": "user", "content": "How is the weather in Paris, Rome and Oslo?"}]
    options = {"temperature": 0, "num_predict": 80}
    for turn in range(3):
        stream = turn == 1
        answer = requiring.chat(MODEL, messages, tools=[WEATHER], options=options, stream=stream)
        parts = list(answer) if stream else [answer]
        [message] = [part.message for part in parts if part.message.tool_calls]
        [call] = message.tool_calls
        given = is_weather(call.function.arguments)
        messages += [
            message,
            {
                "role": "tool",
                "tool_name": call.function.name,
                "content": json.dumps({**given, "degrees": 20 + turn}),
            },
        ]
    last = client.chat(MODEL, messages, tools=[WEATHER], options=GREEDY)
    assert last.done_reason in ("stop", "length")


def check_a_preamble_is_computed_once():
    system = {"role": "system", "content": LONG_SYSTEM}
    for question in ("Paris?", "Rome?"):
        messages = [system, {"role": "user", "content": question}]
        body = {"model": MODEL, "messages": messages, "stream": False, "options": GREEDY}
        answer = httpx.post(f"{url()}/api/chat", json=body, timeout=60).json()
    assert answer["prompt_cached_count"] > 0.9 * answer["prompt_eval_count"]


def check_log_probabilities_are_told():
    answer = client.chat(**ASKED, options=GREEDY, logprobs=True, top_logprobs=2)
    assert len(answer.logprobs) == answer.eval_count
    assert {len(token.top_logprobs) for token in answer.logprobs} == {2}


def check_models_are_listed_and_shown():
    [listed] = client.list().models
    [running] = client.ps().models
    assert listed.model == running.model == f"{MODEL}:latest"
    assert listed.digest == running.digest
    shown = client.show(listed.model)
    assert "tools" in shown.capabilities
    assert shown.modelinfo["general.architecture"] == shown.details.family == "llama"
    assert shown.modelinfo["llama.context_length"] == running.context_length
    assert client.pull(MODEL).status == "success"


def check_the_example_of_the_page_works():
    page = (Path(__file__).parents[3] / "docs/ollama.md").read_text()
    [example] = re.findall(r"(?ms)^```python\n(.*?)^```", page)
    names: dict = {"ollama": ollama, "host": url(), "model": MODEL}
    exec(example, names)
    assert names["answer"].message.content


def check_errors_have_the_status_and_a_sentence():
    for status, call in (
        (404, lambda: client.chat("another", ASKED["messages"])),
        (400, lambda: client.chat(**ASKED, think=True)),
        (400, lambda: client.chat(**ASKED, options={"temperature": -1})),
        (400, lambda: client.generate(MODEL, "x", images=[b"no image"])),
        (400, lambda: client.embed(MODEL, "x")),
        (501, lambda: client.delete(MODEL)),
        (404, lambda: list(client.chat("another", ASKED["messages"], stream=True))),
    ):
        error = raises(ollama.ResponseError, call)
        assert error.status_code == status, error
        assert len(error.error) > 20


if __name__ == "__main__":
    main()
